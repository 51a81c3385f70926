"""What does a lifted model cost, beside the one it was lifted from?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import floor
from benchmarks.grad import kept, straight_gradient
from benchmarks.harness import Candidate, Question
from benchmarks.models import BLOCKS, CONTEXT, VOCABULARY, NnGPT
from parallax import bridge, func, tree


def questions(quick: bool) -> Iterator[Question]:
    blocks = 2 if quick else BLOCKS[150]
    for width in (64,) if quick else (64, 256):
        yield _call(NnGPT(blocks, width), width)
    yield _gradient(NnGPT(blocks, 64), batch=1)
    if not quick:
        yield _gradient(NnGPT(blocks, 256), batch=4)
    yield _lift(NnGPT(4 if quick else BLOCKS[1_002]))
    yield _functional(NnGPT(blocks), tokens=1)
    yield _functional(NnGPT(blocks), tokens=CONTEXT)


def _tokens(batch: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (batch, CONTEXT))


def _same(expected: Any, found: Any) -> None:
    torch.testing.assert_close(found, expected)


def _call(model: NnGPT, width: int) -> Question:
    module = bridge.lift(model)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    x = _tokens(1)
    return Question(
        f"calling a GPT of {len(weights)} parameters, width {width}, on one example",
        Candidate("nn.Module", lambda: model(x)),
        [
            Candidate("bridge.lift", lambda: module(x), limit=1.05),
        ],
        peers=[
            Candidate(
                "torch.func.functional_call",
                lambda: torch.func.functional_call(model, weights, (x,)),
            ),
        ],
        check=_same,
        context=torch.no_grad,
        floor=_straight(model, x),
        all_threads=width > 64,
    )


def _straight(model: NnGPT, x: Tensor) -> Candidate:
    return Candidate("floor: straight-line calls", partial(floor.forward_of(model), x))


def _functional(model: NnGPT, tokens: int) -> Question:
    module = bridge.lift(model)
    weights = {name: value.detach() for name, value in model.named_parameters()}
    x = _tokens(1)[:, :tokens]
    return Question(
        f"calling it instead of functional_call, tokens: {tokens}",
        Candidate(
            "torch.func.functional_call", lambda: torch.func.functional_call(model, weights, (x,))
        ),
        [Candidate("bridge.lift", lambda: module(x), limit=0.60)],
        check=_same,
        context=torch.no_grad,
        floor=_straight(model, x),
    )


def _gradient(model: NnGPT, batch: int) -> Question:
    module = bridge.lift(model)
    x, y = _tokens(batch), _tokens(batch)
    count = len(list(model.parameters()))

    def loss(model: Callable[[Tensor], Tensor]) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def backward() -> None:
        model.zero_grad()
        loss(model).backward()

    gradient, straight = func.grad(loss), straight_gradient(model, loss)

    def check(_: None, found: Any) -> None:
        values = tree.named_leaves(found)
        for name, p in model.named_parameters():
            _same(p.grad, values[name])

    context: Callable[[], AbstractContextManager[object]] = nullcontext
    return Question(
        f"gradient of a GPT of {count} parameters, width {model.head.in_features}, batch {batch}",
        Candidate("loss.backward()", backward),
        [Candidate("func.grad of the lifted model", kept(lambda: gradient(module)), limit=1.03)],
        check=check,
        context=context,
        floor=Candidate("floor: the tape over a flat list", kept(lambda: straight()[0])),
        all_threads=batch > 1,
    )


def _lift(model: NnGPT) -> Question:
    return Question(
        f"lifting a model of {len(list(model.parameters()))} parameters",
        Candidate("copy.deepcopy", lambda: copy.deepcopy(model)),
        [
            Candidate("bridge.lift", lambda: bridge.lift(model), limit=1.0),
            Candidate("bridge.lift(copy=True)", lambda: bridge.lift(model, copy=True), limit=1.0),
        ],
        floor=Candidate(
            "floor: a flat list, detached", lambda: [p.detach() for p in model.parameters()]
        ),
        remains="lift builds a tree of modules, and looks for tied tensors",
    )
