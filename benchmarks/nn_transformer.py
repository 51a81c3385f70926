"""What does a transformer cost, beside torch.nn's in each of its modes?"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from benchmarks import floor_nn
from benchmarks.harness import Candidate, Question
from parallax import bridge, nn

WIDTH, HEADS, LAYERS = 64, 4, 12
LIMIT = 0.97
# What goes in: one short sequence, where the calls count, and a batch, where arithmetic does.
SIZES = {"one sequence of 16": (1, 16), "8 sequences of 32": (8, 32)}


def questions(quick: bool) -> Iterator[Question]:
    theirs, ours = _models(2 if quick else LAYERS)
    for name, shape in SIZES.items():
        x = torch.randn(*shape, WIDTH)
        # In mode "eval" and without gradients torch.nn calls one fused operator for each layer.
        for mode in ("eval", "train"):
            yield _question(f"{mode}, no grad, {name}", theirs, ours, x, mode, torch.no_grad)
        yield _question(f"train, with grad, {name}", theirs, ours, x, "train", torch.enable_grad)
    yield from _containers()


def _models(layers: int) -> tuple[torch_nn.Module, Any]:
    arguments: dict[str, Any] = {
        "dim_feedforward": 4 * WIDTH, "dropout": 0.0, "activation": "gelu", "batch_first": True,
    }  # fmt: skip
    layer = torch_nn.TransformerEncoderLayer(WIDTH, HEADS, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_nn.TransformerEncoder(layer, layers, torch_nn.LayerNorm(WIDTH))
    one = nn.TransformerEncoderLayer(WIDTH, HEADS, **arguments)
    ours = nn.TransformerEncoder(one, layers, nn.LayerNorm(WIDTH))
    return theirs, bridge.load_state_dict(ours, theirs.state_dict())


def _question(
    name: str,
    theirs: torch_nn.Module,
    ours: Any,
    x: Tensor,
    mode: str,
    context: Callable[[], AbstractContextManager[Any]],
) -> Question:
    prepared = ours.train() if mode == "train" else ours.eval()
    if context is torch.enable_grad:  # both record a graph
        prepared = prepared.reset(0, mode)
    stack = nn.Stack.of(prepared.layers)
    norm = prepared.norm
    layer = floor_nn.of("TransformerEncoderLayer")

    def straight(x: Tensor) -> Tensor:
        for each in prepared.layers:
            x = layer(each, x)
        return floor_nn.of("LayerNorm")(norm, x)  # type: ignore[no-any-return]  # of any layer

    theirs = copy.deepcopy(theirs).train(mode == "train")
    return Question(
        f"forward of {len(prepared.layers)} layers, {name}",
        Candidate("torch.nn", lambda: theirs(x)),
        [
            Candidate("parallax.nn", lambda: prepared(x), limit=LIMIT),
            Candidate("parallax.nn, stacked", lambda: norm(stack(x))),
        ],
        check=lambda one, two: torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5),
        context=context,
        floor=Candidate("floor: straight-line calls", lambda: straight(x)),
        all_threads=x.shape[0] > 1,
    )


def _containers() -> Iterator[Question]:
    """Containers of layers, at a size where only the calls count."""
    theirs = torch_nn.Sequential(*[torch_nn.Linear(8, 8) for _ in range(10)])
    ours: Any = nn.Sequential(*[nn.Linear(8, 8) for _ in range(10)])
    ours = bridge.load_state_dict(ours, theirs.state_dict())
    pairs = [(layer.weight, layer.bias) for layer in ours.layers]
    x = torch.randn(1, 8)

    def straight(x: Tensor) -> Tensor:
        for weight, bias in pairs:
            x = F.linear(x, weight, bias)
        return x

    yield Question(
        "Sequential of 10 small linear layers",
        Candidate("torch.nn", lambda: theirs(x)),
        [Candidate("parallax.nn", lambda: ours(x), limit=0.85)],
        floor=Candidate("floor: straight-line calls", lambda: straight(x)),
        check=torch.testing.assert_close,
        context=torch.no_grad,
    )
