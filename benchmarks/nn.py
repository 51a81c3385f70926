"""What does a layer cost, where its overhead counts and where its arithmetic does?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import nn as torch_nn

from benchmarks.harness import Candidate, Question
from parallax import bridge, nn

SMALL, LARGE = 0.85, 1.02
# There are many layers: few rounds for each.
ROUNDS = 9


class Case(NamedTuple):
    """A layer, by the name that it has in both libraries, at one size."""

    name: str
    size: str
    arguments: tuple[Any, ...]
    inputs: tuple[Any, ...]


def small(name: str, arguments: tuple[Any, ...], *inputs: Any) -> Case:
    """A case whose time goes into the call."""
    return Case(name, "small", arguments, inputs)


def large(name: str, arguments: tuple[Any, ...], *inputs: Any) -> Case:
    """A case whose time goes into the arithmetic: milliseconds."""
    return Case(name, "large", arguments, inputs)


def floats(*shape: int) -> Tensor:
    """Some numbers."""
    return torch.randn(shape)


CASES = [
    small("Linear", (4, 4), floats(1, 4)),
    large("Linear", (512, 512), floats(256, 512)),
    small("BatchNorm1d", (4,), floats(2, 4)),
    large("BatchNorm1d", (512,), floats(4096, 512)),
    small("BatchNorm2d", (4,), floats(1, 4, 2, 2)),
    large("BatchNorm2d", (64,), floats(16, 64, 32, 32)),
    small("BatchNorm3d", (4,), floats(1, 4, 2, 2, 2)),
    large("BatchNorm3d", (16,), floats(4, 16, 32, 32, 32)),
    small("InstanceNorm1d", (4,), floats(1, 4, 2)),
    large("InstanceNorm1d", (64,), floats(64, 64, 64)),
    small("InstanceNorm2d", (4,), floats(1, 4, 2, 2)),
    large("InstanceNorm2d", (64,), floats(8, 64, 32, 32)),
    small("InstanceNorm3d", (4,), floats(1, 4, 2, 2, 2)),
    large("InstanceNorm3d", (16,), floats(2, 16, 32, 32, 32)),
    small("LayerNorm", (4,), floats(1, 4)),
    large("LayerNorm", (512,), floats(4096, 512)),
    small("RMSNorm", (4,), floats(1, 4)),
    large("RMSNorm", (512,), floats(4096, 512)),
    small("GroupNorm", (2, 4), floats(1, 4, 2, 2)),
    large("GroupNorm", (8, 64), floats(16, 64, 32, 32)),
    small("LocalResponseNorm", (2,), floats(1, 4, 2, 2)),
    large("LocalResponseNorm", (5,), floats(16, 64, 32, 32)),
    small("Dropout", (), floats(1, 4)),
    small("Dropout1d", (), floats(1, 4, 2)),
    small("Dropout2d", (), floats(1, 4, 2, 2)),
    small("Dropout3d", (), floats(1, 4, 2, 2, 2)),
    small("AlphaDropout", (), floats(1, 4)),
    small("FeatureAlphaDropout", (), floats(1, 4, 2)),
    small("RNNCell", (4, 4), floats(1, 4)),
    large("RNNCell", (512, 512), floats(256, 512)),
    small("GRUCell", (4, 4), floats(1, 4)),
    large("GRUCell", (256, 256), floats(256, 256)),
    small("LSTMCell", (4, 4), floats(1, 4)),
    large("LSTMCell", (256, 256), floats(256, 256)),
    small("RNN", (4, 4), floats(1, 1, 4)),
    large("RNN", (256, 256), floats(16, 64, 256)),
    small("GRU", (4, 4), floats(1, 1, 4)),
    large("GRU", (256, 256), floats(16, 64, 256)),
    small("LSTM", (4, 4), floats(1, 1, 4)),
    large("LSTM", (256, 256), floats(16, 64, 256)),
]


def questions(quick: bool) -> Iterator[Question]:
    for case in CASES:
        if not (quick and case.size == "large"):
            yield _question(case)


def _question(case: Case) -> Question:
    theirs = getattr(torch_nn, case.name)(*case.arguments).eval()
    ours = getattr(nn, case.name)(*case.arguments)
    ours = bridge.load_state_dict(ours, theirs.state_dict()).eval()
    inputs = case.inputs
    return Question(
        f"{case.name}, {case.size}",
        Candidate("torch.nn", lambda: theirs(*inputs)),
        [
            Candidate(
                "parallax.nn",
                lambda: ours(*inputs),
                limit=SMALL if case.size == "small" else LARGE,
            )
        ],
        check=torch.testing.assert_close,
        context=torch.no_grad,
        most_rounds=ROUNDS,
    )
