"""What does calling a module cost?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import floor, peers
from benchmarks.harness import Candidate, Question
from benchmarks.models import CONTEXT, VOCABULARY, NnChain, NnGPT, NnMLP, mirror
from parallax import effects


def questions(quick: bool) -> Iterator[Question]:
    mlp = NnMLP((64, 64, 64, 10))
    absent: dict[str, str] = {}
    jitted = peers.equinox("call", "jax with equinox, jitted, in a process of its own", absent)
    one = _forward("a 3-layer MLP on one example", mlp, torch.randn(1, 64), limit=0.60)
    yield replace(one, peers=[*one.peers, *jitted], absent={**one.absent, **absent})
    yield _forward("a 3-layer MLP on 512 examples", mlp, torch.randn(512, 64), all_threads=True)
    depth = 20 if quick else 200
    chain = NnChain(depth, 8)
    yield _forward(f"{depth} layers of 8 x 8", chain, torch.randn(1, 8), limit=0.60)
    tokens = torch.randint(VOCABULARY, (1, CONTEXT))
    yield _forward("a 12-layer transformer", NnGPT(12), tokens, all_threads=True)
    yield _captured(NnGPT(12), tokens)


def _forward(
    name: str, model: nn.Module, x: Tensor, limit: float | None = None, all_threads: bool = False
) -> Question:
    module: Any = mirror(model)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    others = [
        Candidate(
            "torch.func.functional_call",
            lambda: torch.func.functional_call(model, parameters, (x,)),
        ),
    ]
    absent: dict[str, str] = {}
    tensordict = peers.find("tensordict", absent)
    if tensordict is not None:
        values = tensordict.from_module(model, as_module=False).detach()
        others.append(Candidate("tensordict", partial(_with_tensordict, values, model, x)))
    return Question(
        name,
        Candidate("nn.Module", lambda: model(x)),
        [Candidate("parallax", lambda: module(x), limit=limit)],
        peers=others,
        check=torch.testing.assert_close,
        context=torch.no_grad,
        floor=Candidate("floor: straight-line calls", partial(floor.forward_of(model), x)),
        absent=absent,
        all_threads=all_threads,
    )


def _captured(model: NnGPT, tokens: Tensor) -> Question:
    """The outputs of all blocks, beside the result; with a graph, which keeps them in any case."""
    module: Any = mirror(model).reset(0)
    run = effects.capture(lambda module, x: module(x), "blocks.*")
    kept: dict[int, Tensor] = {}
    hooked = copy.deepcopy(model)
    for k, block in enumerate(hooked.blocks):
        block.register_forward_hook(lambda *call, k=k: kept.update({k: call[2]}))
    return Question(
        "the outputs of the 12 blocks of a transformer",
        Candidate("parallax, without capture", lambda: module(tokens)),
        [Candidate("effects.capture", lambda: run(module, tokens)[0], limit=1.05)],
        peers=[Candidate("nn.Module with hooks", lambda: hooked(tokens))],
        check=torch.testing.assert_close,
    )


def _with_tensordict(values: Any, model: nn.Module, x: Tensor) -> Any:
    with values.to_module(model):
        return model(x)
