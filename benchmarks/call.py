"""What does calling a module cost?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Candidate, Question
from benchmarks.models import NnChain, NnMLP, mirror

Forward = Callable[[Tensor], Tensor]


def questions(quick: bool) -> Iterator[Question]:
    mlp = NnMLP((64, 64, 64, 10))
    yield _forward("a 3-layer MLP on one example", mlp, _straight_mlp(mlp), torch.randn(1, 64))
    depth = 20 if quick else 200
    chain = NnChain(depth, 8)
    yield _forward(f"{depth} layers of 8 x 8", chain, _straight_chain(chain), torch.randn(1, 8))


def _forward(name: str, model: nn.Module, straight: Forward, x: Tensor) -> Question:
    module = mirror(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    return Question(
        name,
        Candidate("nn.Module", lambda: model(x)),
        [
            Candidate("parallax", lambda: module(x), limit=0.60),
            Candidate("straight-line torch calls", lambda: straight(x)),
            Candidate(
                "torch.func.functional_call",
                lambda: torch.func.functional_call(model, parameters, (x,)),
            ),
        ],
        check=torch.testing.assert_close,
        context=torch.no_grad,
    )


def _straight_mlp(model: NnMLP) -> Forward:
    w1, b1, w2, b2, w3, b3 = (value.detach() for value in model.parameters())

    def forward(x: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(torch.relu(F.linear(x, w1, b1)), w2, b2)), w3, b3)

    return forward


def _straight_chain(model: NnChain) -> Forward:
    parameters = [value.detach() for value in model.parameters()]
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))

    def forward(x: Tensor) -> Tensor:
        for weight, bias in pairs:
            x = F.linear(x, weight, bias)
        return x

    return forward
