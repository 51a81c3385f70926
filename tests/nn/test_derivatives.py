"""Every layer and loss has the right derivatives, of any order and in any nesting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, func, nn, random
from tests.corpus.losses import FUNCTIONS, ONCE, rows
from tests.nn import test_every_layer
from tests.nn.derivatives import Line, words, wrong_derivatives
from tests.nn.test_every_layer import CLASSES, IMAGE, SCORES, SIGNAL, VOLUME, Case, floats

Layer = Callable[[], Any]


def case(
    name: str, layer: Callable[[], Any], *inputs: Any, mode: str = "eval", scale: float = 1.0
) -> Any:
    return pytest.param(layer, inputs, mode, scale, id=name)


def from_table(entry: Case) -> Any:
    # Straight pieces end nearby in a transformer with ReLU, and probabilities end at zero and one;
    # below there are others.
    if entry.name.startswith(("Transformer", "BCELoss")):
        return None
    return case(entry.name, entry.ours, *entry.inputs, mode=entry.mode)


BATCH = floats(3, 5, 4)
VARIANCES = BATCH.exp() + 1
BAGS = torch.tensor([[1, 2, 4], [0, 1, 2]])
FLAT, OFFSETS = torch.tensor([1, 2, 4, 0, 1, 2]), torch.tensor([0, 2, 2, 5])
SEEN = torch.ones(5, 5, dtype=torch.bool).tril().logical_not()


class Attention(Module):
    """Self-attention whose inputs and mask are differentiated."""

    inner: nn.MultiheadAttention
    causal: bool = False
    weights: bool = False

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        return self.inner(x, x, x, need_weights=self.weights, attn_mask=mask, is_causal=self.causal)


def attention(*args: Any, causal: bool = False, weights: bool = False, **options: Any) -> Layer:
    return lambda: Attention(nn.MultiheadAttention(4, *args, **options), causal, weights)


def encoder(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(4, 2, 6, activation=torch.tanh, **options)


def decoder(**options: Any) -> nn.TransformerDecoderLayer:
    return nn.TransformerDecoderLayer(4, 2, 6, activation=torch.tanh, **options)


def trained(layer: Module) -> Module:
    return layer.train(random.key(0))


def rotated(how: str) -> Module:
    return nn.Orthogonal(nn.Linear(4, 3), "weight", how)


MORE = [
    case("BCELoss", lambda: lambda x, y: nn.BCELoss()(x.sigmoid(), y.sigmoid()), BATCH, BATCH),
    case(
        "transformer",
        lambda: nn.Transformer(4, 2, 1, 1, 6, activation=torch.tanh),
        BATCH,
        BATCH,
        scale=0.3,
    ),
    case("PairwiseDistance of one", lambda: nn.PairwiseDistance(1.0), floats(5, 4), floats(4)),
    case("PairwiseDistance of three", lambda: nn.PairwiseDistance(3.0), BATCH, floats(5, 4)),
    case("PoissonNLLLoss full", lambda: nn.PoissonNLLLoss(full=True), BATCH, BATCH.abs() + 1.5),
    case("KLDivLoss log", lambda: nn.KLDivLoss(log_target=True), BATCH, BATCH),
    case(
        "GaussianNLLLoss full", lambda: nn.GaussianNLLLoss(full=True), BATCH, BATCH, BATCH.exp() + 1
    ),
    case("MultiMarginLoss squared", lambda: nn.MultiMarginLoss(2), SCORES, CLASSES),
    case(
        "LinearCrossEntropyLoss chunked",
        lambda: nn.LinearCrossEntropyLoss(4, 3, chunk_size=2, bias=True),
        SCORES,
        CLASSES % 3,
    ),
    case("LayerNorm plain", lambda: nn.LayerNorm((5, 4), elementwise_affine=False), BATCH),
    case("LayerNorm no bias", lambda: nn.LayerNorm(4, bias=False), BATCH),
    case("BatchNorm1d no statistics", lambda: nn.BatchNorm1d(4, track_running_stats=False), SIGNAL),
    case("BatchNorm1d plain", lambda: nn.BatchNorm1d(4, affine=False), SIGNAL, mode="train"),
    case("BatchNorm2d average", lambda: nn.BatchNorm2d(4, momentum=None), IMAGE, mode="train"),
    case("InstanceNorm1d plain", lambda: nn.InstanceNorm1d(4), SIGNAL),
    case("InstanceNorm1d single", lambda: nn.InstanceNorm1d(4, affine=True), SIGNAL[0]),
    case(
        "InstanceNorm2d eval",
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        IMAGE,
    ),
    case("GroupNorm image", lambda: nn.GroupNorm(2, 4), IMAGE),
    case("RMSNorm plain", lambda: nn.RMSNorm((5, 4), elementwise_affine=False), BATCH),
    case("LocalResponseNorm odd", lambda: nn.LocalResponseNorm(3), SIGNAL),
    case("WeightNorm last", lambda: nn.WeightNorm(nn.Linear(4, 3), dim=1), BATCH),
    case("WeightNorm whole", lambda: nn.WeightNorm(nn.Linear(4, 3), dim=None), BATCH),
    case("WeightNorm middle", lambda: nn.WeightNorm(nn.Conv1d(4, 3, 2), dim=1), SIGNAL),
    *[
        case(f"Orthogonal {how}", partial(rotated, how), BATCH, scale=0.5)
        for how in ("matrix_exp", "cayley")
    ],
    case("attention", attention(2), BATCH),
    case("attention weights", attention(2, weights=True), BATCH),
    case("attention causal", attention(2, causal=True), BATCH),
    case("attention mask", attention(2), BATCH, floats(3, 3)),
    case("attention hidden", attention(2, batch_first=True), BATCH, SEEN),
    case("attention grouped", attention(4, num_kv_heads=2, batch_first=True), BATCH),
    case("attention more", attention(2, add_bias_kv=True, add_zero_attn=True), BATCH),
    case("attention dropout", attention(2, dropout=0.3), BATCH, mode="train"),
    case(
        "attention rotary",
        attention(2, rotary=nn.RotaryEmbedding(2), batch_first=True, causal=True),
        BATCH,
    ),
    case("encoder layer", encoder, BATCH, scale=0.5),
    case("encoder layer norm first", lambda: encoder(norm_first=True), BATCH, scale=0.5),
    case("encoder layer train", encoder, BATCH, mode="train", scale=0.5),
    case("encoder", lambda: nn.TransformerEncoder(encoder(), 2), BATCH, scale=0.3),
    case("decoder layer", decoder, BATCH, floats(2, 5, 4), scale=0.5),
    case("decoder", lambda: nn.TransformerDecoder(decoder(), 2), BATCH, BATCH, scale=0.3),
    *[
        case(f"EmbeddingBag {mode}", partial(nn.EmbeddingBag, 5, 3, mode=mode), BAGS)
        for mode in ("sum", "max")
    ],
    *[
        case(
            f"EmbeddingBag {mode} offsets",
            partial(nn.EmbeddingBag, 5, 3, mode=mode, padding_idx=2),
            FLAT,
            OFFSETS,
        )
        for mode in ("sum", "mean", "max")
    ],
    case(
        "EmbeddingBag weighed",
        lambda: nn.EmbeddingBag(5, 3, mode="sum", include_last_offset=True),
        FLAT,
        torch.tensor([0, 4, 6]),
        floats(6),
    ),
    case("Embedding whole", lambda: nn.Embedding(5, 3), BAGS),
    case("GELU tanh", lambda: nn.GELU("tanh"), BATCH),
    case("Softplus steep", lambda: nn.Softplus(2.0, 5.0), BATCH),
    case("RReLU train", nn.RReLU, BATCH, mode="train"),
    case("Hardtanh narrow", lambda: nn.Hardtanh(-0.5, 0.5), BATCH),
    case("GLU middle", lambda: nn.GLU(0), floats(4, 3)),
    case("Dropout train", nn.Dropout, BATCH, mode="train"),
    case("Dropout1d train", nn.Dropout1d, SIGNAL, mode="train"),
    case("Dropout2d train", nn.Dropout2d, IMAGE, mode="train"),
    case("Dropout3d train", nn.Dropout3d, VOLUME, mode="train"),
    case("AlphaDropout train", nn.AlphaDropout, BATCH, mode="train"),
    case("FeatureAlphaDropout train", nn.FeatureAlphaDropout, BATCH, mode="train"),
    *[
        case(f"Conv2d {how}", partial(nn.Conv2d, 4, 2, 3, padding=1, padding_mode=how), IMAGE)
        for how in ("reflect", "replicate")
    ],
    case("Conv2d groups", lambda: nn.Conv2d(4, 4, 2, 2, dilation=2, groups=2), IMAGE),
    case("Conv1d single", lambda: nn.Conv1d(4, 2, 3), SIGNAL[0]),
    case(
        "ConvTranspose2d groups",
        lambda: nn.ConvTranspose2d(4, 4, 2, 2, output_padding=1, groups=2),
        IMAGE,
    ),
    *[
        case(f"Upsample {mode}", partial(nn.Upsample, scale_factor=1.7, mode=mode), x)
        for mode, x in (("nearest", IMAGE), ("bilinear", IMAGE), ("bicubic", IMAGE))
    ],
    case("Upsample linear", lambda: nn.Upsample(9, mode="linear", align_corners=True), SIGNAL),
    case("MaxPool2d dilated", lambda: nn.MaxPool2d(2, 1, dilation=2, padding=1), IMAGE),
    case("MaxPool2d indices", lambda: nn.MaxPool2d(2, return_indices=True), IMAGE),
    case("AvgPool2d odd", lambda: nn.AvgPool2d(2, 1, 1, count_include_pad=False), IMAGE),
    case("LPPool1d odd", lambda: nn.LPPool1d(3, 2), SIGNAL.abs() + 1),
    case("FractionalMaxPool2d", lambda: nn.FractionalMaxPool2d(2, 3), IMAGE, mode="train"),
    case("FractionalMaxPool3d", lambda: nn.FractionalMaxPool3d(2, 2), VOLUME, mode="train"),
    case("RNN relu", lambda: nn.RNN(4, 3, nonlinearity="relu"), BATCH, scale=0.5),
    case("RNNCell relu", lambda: nn.RNNCell(4, 3, nonlinearity="relu"), floats(5, 4), scale=0.5),
    case("LSTM projected", lambda: nn.LSTM(4, 3, proj_size=2, bidirectional=True), BATCH),
    case("GRU two layers", lambda: nn.GRU(4, 3, 2, bias=False), BATCH),
    case("LSTM dropout", lambda: nn.LSTM(4, 3, 2, dropout=0.4), BATCH, mode="train"),
]

FUNCTIONAL = [
    case(name, partial(lambda fn: fn, fn), rows())
    for name, fn in FUNCTIONS.items()
    if name not in ONCE
]

CASES = [c for c in map(from_table, test_every_layer.CASES) if c is not None] + MORE + FUNCTIONAL

every_case = pytest.mark.parametrize(("layer", "inputs", "mode", "scale"), CASES)
# A loop inside torch under vmap, and what torch says of itself for some losses there.
slowly = pytest.mark.filterwarnings(
    "ignore:There is a performance drop:UserWarning",
    "ignore:An output with one or more elements was resized:UserWarning",
)

# One of each kind: by the tape alone, with forward derivatives, with a vmap around, inside and
# between.
FEW = ["FF", "RF", "RVR", "FVR", "VRF", "RRR", "RRRR"]
# The tape around transforms of torch.func, which hide it.
TAPED = ["T", "TT", "TTT", "TTTT", "TR", "TRR", "TTR", "TF", "TTF", "TFF", "TV", "TTV", "TTTV",
         "TTTTV", "TVR", "TVRR", "TTVR", "TVF", "TRVR", "TTVF", "TVFR", "TVRF"]  # fmt: skip


def line(layer: Layer, inputs: Sequence[Any], mode: str, scale: float) -> Line:
    module = layer()
    if not isinstance(module, Module):
        return Line(module, inputs, scale)
    if any(True for _ in parallax.tree.leaves(module)):
        module = module.initialize(0)
    return Line(trained(module) if mode == "train" else module.eval(), inputs, scale)


@slowly
@every_case
def test_some_nestings(layer: Layer, inputs: Any, mode: str, scale: float) -> None:
    assert wrong_derivatives(line(layer, inputs, mode, scale), FEW, func) == []


@slowly
@pytest.mark.parametrize("name", ONCE)
def test_derivatives_that_torch_has_not_are_errors(name: str) -> None:
    made = line(lambda: FUNCTIONS[name], [rows()], "eval", 1.0)
    assert wrong_derivatives(made, ["R"], func) == []
    refused = wrong_derivatives(made, ["FF", "RF", "RR", "FVR"], func)
    assert refused and all("Error" in str(wrong.found) for wrong in refused)


@pytest.mark.slow
@slowly
@every_case
def test_all_nestings(layer: Layer, inputs: Any, mode: str, scale: float) -> None:
    made = line(layer, inputs, mode, scale)
    assert wrong_derivatives(made, words(4), func) == []
    assert wrong_derivatives(made, words(4) + TAPED, torch.func) == []
