"""What does a layer cost, where its overhead counts and where its arithmetic does?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.nn.utils import parametrizations

from benchmarks import floor_nn
from benchmarks.harness import Candidate, Question
from parallax import bridge, nn

SMALL, LARGE = 0.85, 1.02
# There are many layers: few rounds for each, and fewest where a call is short.
ROUNDS = {"small": 7, "large": 8}


class Case(NamedTuple):
    """A layer, by the name that it has in both libraries, at one size."""

    name: str
    size: str
    arguments: tuple[Any, ...]
    inputs: tuple[Callable[[], Any], ...]


def small(name: str, arguments: tuple[Any, ...], *inputs: Callable[[], Any]) -> Case:
    """A case whose time goes into the call."""
    return Case(name, "small", arguments, inputs)


def large(name: str, arguments: tuple[Any, ...], *inputs: Callable[[], Any]) -> Case:
    """A case whose time goes into the arithmetic: milliseconds."""
    return Case(name, "large", arguments, inputs)


def floats(*shape: int) -> Callable[[], Tensor]:
    """Some numbers, when they are needed."""
    return partial(torch.randn, shape)


def indices(*shape: int) -> Callable[[], Tensor]:
    """Rows of a table of ten."""
    return partial(torch.randint, 10, shape)


def places(*shape: int) -> Callable[[], Tensor]:
    """Where the numbers of a shape stand in one that is twice as large."""
    return lambda: torch.arange(math.prod(shape[2:])).reshape(shape[2:]).expand(shape).contiguous()


# Around a linear layer.
WRAPPERS: dict[str, Any] = {
    "SpectralNorm": parametrizations.spectral_norm,
    "WeightNorm": parametrizations.weight_norm,
}

PLAIN = ["CELU", "ELU", "GELU", "GLU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh"]
PLAIN += ["LeakyReLU", "LogSigmoid", "Mish", "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU"]
PLAIN += ["Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh", "Tanhshrink"]
ACTIVATIONS: dict[str, tuple[Any, ...]] = dict.fromkeys(PLAIN, ())
ACTIVATIONS |= {"LogSoftmax": (-1,), "Softmax": (-1,), "Softmin": (-1,), "Threshold": (0.1, 1.0)}

CASES = [
    small("Linear", (4, 4), floats(1, 4)),
    large("Linear", (512, 512), floats(256, 512)),
    small("MultiheadAttention", (4, 2), *[floats(2, 1, 4)] * 3),
    large("MultiheadAttention", (256, 4), *[floats(64, 16, 256)] * 3),
    small("TransformerEncoderLayer", (4, 2, 8, 0.0), floats(2, 1, 4)),
    large("TransformerEncoderLayer", (256, 4, 1024, 0.0), floats(64, 8, 256)),
    small("TransformerDecoderLayer", (4, 2, 8, 0.0), *[floats(2, 1, 4)] * 2),
    large("TransformerDecoderLayer", (256, 4, 1024, 0.0), *[floats(64, 8, 256)] * 2),
    small("Bilinear", (4, 4, 4), floats(1, 4), floats(1, 4)),
    large("Bilinear", (64, 64, 64), floats(256, 64), floats(256, 64)),
    small("Identity", (), floats(1, 4)),
    small("Embedding", (10, 4), indices(1, 4)),
    large("Embedding", (10_000, 512), indices(64, 64)),
    small("EmbeddingBag", (10, 4), indices(1, 4)),
    large("EmbeddingBag", (10_000, 512), indices(512, 64)),
    small("Conv1d", (4, 4, 3), floats(1, 4, 4)),
    large("Conv1d", (64, 64, 3), floats(16, 64, 256)),
    small("Conv2d", (4, 4, 3), floats(1, 4, 4, 4)),
    large("Conv2d", (64, 64, 3), floats(4, 64, 32, 32)),
    small("Conv3d", (4, 4, 3), floats(1, 4, 4, 4, 4)),
    large("Conv3d", (16, 16, 3), floats(2, 16, 16, 16, 16)),
    small("ConvTranspose1d", (4, 4, 3), floats(1, 4, 4)),
    large("ConvTranspose1d", (64, 64, 3), floats(16, 64, 256)),
    small("ConvTranspose2d", (4, 4, 3), floats(1, 4, 4, 4)),
    large("ConvTranspose2d", (64, 64, 3), floats(4, 64, 32, 32)),
    small("ConvTranspose3d", (4, 4, 3), floats(1, 4, 4, 4, 4)),
    large("ConvTranspose3d", (16, 16, 3), floats(2, 16, 16, 16, 16)),
    *[
        case
        for dims, signals in ((1, (64, 64, 256)), (2, (16, 64, 32, 32)), (3, (4, 16, 32, 32, 16)))
        for name, arguments in (
            ("MaxPool", (2,)),
            ("AvgPool", (2,)),
            ("LPPool", (2, 2)),
            ("AdaptiveMaxPool", (2,)),
            ("AdaptiveAvgPool", (2,)),
            ("ConstantPad", (1, 0.5)),
            ("ZeroPad", (1,)),
            ("ReflectionPad", (1,)),
            ("ReplicationPad", (1,)),
            ("CircularPad", (1,)),
        )
        for case in (
            small(f"{name}{dims}d", arguments, floats(1, 1, *[4] * dims)),
            large(f"{name}{dims}d", arguments, floats(*signals)),
        )
    ],
    small("MaxUnpool1d", (2,), floats(1, 1, 2), places(1, 1, 2)),
    small("MaxUnpool2d", (2,), floats(1, 1, 2, 2), places(1, 1, 2, 2)),
    small("MaxUnpool3d", (2,), floats(1, 1, 2, 2, 2), places(1, 1, 2, 2, 2)),
    large("MaxUnpool2d", (2,), floats(16, 64, 32, 32), places(16, 64, 32, 32)),
    small("Flatten", (), floats(1, 4, 4)),
    small("Unflatten", (1, (2, 2)), floats(1, 4)),
    small("Upsample", (None, 2), floats(1, 1, 2, 2)),
    large("Upsample", (None, 2), floats(16, 64, 16, 16)),
    small("UpsamplingNearest2d", (4,), floats(1, 1, 2, 2)),
    small("UpsamplingBilinear2d", (4,), floats(1, 1, 2, 2)),
    large("UpsamplingBilinear2d", (32,), floats(16, 64, 16, 16)),
    small("PixelShuffle", (2,), floats(1, 4, 2, 2)),
    large("PixelShuffle", (2,), floats(16, 64, 32, 32)),
    small("PixelUnshuffle", (2,), floats(1, 1, 4, 4)),
    large("PixelUnshuffle", (2,), floats(16, 64, 32, 32)),
    small("ChannelShuffle", (2,), floats(1, 4, 2)),
    large("ChannelShuffle", (2,), floats(16, 64, 32, 32)),
    *[
        case
        for name, arguments in ACTIVATIONS.items()
        for case in (
            small(name, arguments, floats(1, 4)),
            large(name, arguments, floats(1024, 512)),
        )
    ],
    small("Softmax2d", (), floats(1, 2, 2, 2)),
    large("Softmax2d", (), floats(16, 64, 16, 16)),
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
    small("SpectralNorm", (4, 4), floats(1, 4)),
    large("SpectralNorm", (512, 512), floats(256, 512)),
    small("WeightNorm", (4, 4), floats(1, 4)),
    large("WeightNorm", (512, 512), floats(256, 512)),
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
    if case.name in WRAPPERS:
        theirs = WRAPPERS[case.name](torch_nn.Linear(*case.arguments)).eval()
        ours = getattr(nn, case.name)(nn.Linear(*case.arguments))
    else:
        theirs = getattr(torch_nn, case.name)(*case.arguments).eval()
        ours = getattr(nn, case.name)(*case.arguments)
    ours = bridge.load_state_dict(ours, theirs.state_dict()).eval()
    inputs = [make() for make in case.inputs]
    straight = floor_nn.of(case.name)
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
        most_rounds=ROUNDS[case.size],
        floor=Candidate("torch's functions in a row", lambda: straight(ours, *inputs)),
        remains="What is left is a method call, reading fields, and torch's own argument checks",
        all_threads=case.size == "large",
    )
