"""The physical limit of each layer: what it computes, by torch's functions in a row.

A floor is called as ``floor(layer, *inputs)``, and reads the layer's parameters where it needs
them; what else the benchmarked layers are given stands here as numbers. Functions are those that
torch's own layers end up in, past the overloads of ``torch.nn.functional`` that only dispatch.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import kernels

Floor = Callable[..., Any]


def of(name: str) -> Floor:
    """The floor of the layer of this name, as ``benchmarks.nn`` builds it."""
    return _FLOORS[name]


# -- layers with a line of their own ---------------------------------------------------------------


def _linear(layer: Any, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _convolution(name: str) -> Floor:
    function = getattr(torch, name)
    return lambda layer, x: function(x, layer.weight, layer.bias)


def _padded(dims: int, mode: str, value: float | None = None) -> Floor:
    pads = (1,) * (2 * dims)
    return lambda _, x: F.pad(x, pads, mode, value)


def _pooled(name: str, size: Any) -> Floor:
    function = getattr(F, name)
    return lambda _, *inputs: function(*inputs, size)


def _power_pooled(dims: int) -> Floor:
    mean = getattr(F, f"avg_pool{dims}d")
    numbers = 2**dims
    return lambda _, x: (mean(x * x, 2) * numbers).sqrt()


def _batch_norm(layer: Any, x: Tensor) -> Tensor:
    return torch.batch_norm(
        x, layer.weight, layer.bias, layer.running_mean, layer.running_var,
        False, 0.1, 1e-5, torch.backends.cudnn.enabled,
    )  # fmt: skip


def _instance_norm(_: Any, x: Tensor) -> Tensor:
    return torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, True)


def _layer_norm(layer: Any, x: Tensor) -> Tensor:
    return torch.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-5)


def _embedding_bag(layer: Any, bags: Tensor) -> Tensor:
    starts = torch.arange(0, bags.numel(), bags.shape[1])
    rows: Tensor = torch.embedding_bag(layer.weight, bags.reshape(-1), starts, False, 1)[0]
    return rows


def _response_norm(size: int) -> Floor:
    def run(_: Any, x: Tensor) -> Tensor:
        squares = F.avg_pool2d((x * x).flatten(2), (size, 1), 1, (size // 2, 0))
        squares = squares[:, : x.shape[1]] if size % 2 == 0 else squares
        return x / (squares.view_as(x) * 1e-4 + 1.0).pow(0.75)

    return run


def _spectral_norm(layer: Any, x: Tensor) -> Tensor:
    weight, bias = layer.layer.weight, layer.layer.bias
    return F.linear(x, weight / torch.dot(layer.u, torch.mv(weight, layer.v)), bias)


def _weight_norm(layer: Any, x: Tensor) -> Tensor:
    linear = layer.layer
    return F.linear(x, kernels.weight_norm(linear.weight, layer.magnitude, 0), linear.bias)


def _cell(name: str) -> Floor:
    function = getattr(torch, name)

    def run(layer: Any, x: Tensor) -> Any:
        h = x.new_zeros(x.shape[0], layer.weight_hh.shape[1])
        state = (h, h) if name == "lstm_cell" else h
        return function(x, state, layer.weight_ih, layer.weight_hh, layer.bias_ih, layer.bias_hh)

    return run


# -- attention -------------------------------------------------------------------------------------


def _attention(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Across sequences ``(L, N, E)``, with the weights averaged over the heads."""
    weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    count, batch, width = query.shape
    over, size = batch * layer.num_heads, width // layer.num_heads
    inputs = zip((query, key, value), weights, biases, strict=True)
    q, k, v = [F.linear(x, w, b).view(x.shape[0], over, size).transpose(0, 1) for x, w, b in inputs]
    shares = torch.bmm(q * sqrt(1.0 / size), k.transpose(1, 2)).softmax(-1)
    mixed = torch.bmm(shares, v).transpose(0, 1).reshape(count, batch, width)
    out = F.linear(mixed, layer.out_proj.weight, layer.out_proj.bias)
    return out, shares.view(batch, -1, count, key.shape[0]).mean(1)


def _attended(layer: Any, x: Tensor, memory: Tensor) -> Tensor:
    """Attention without weights: torch's fused kernel between the projections."""
    weight, bias, width = layer.in_proj_weight, layer.in_proj_bias, x.shape[-1]
    if memory is x:
        q, k, v = F.linear(x, weight, bias).chunk(3, -1)
    else:
        q = F.linear(x, weight[:width], bias[:width])
        k, v = F.linear(memory, weight[width:], bias[width:]).chunk(2, -1)
    apart = (0, 2, 1, 3) if layer.batch_first else (1, 2, 0, 3)
    together = (0, 2, 1, 3) if layer.batch_first else (2, 0, 1, 3)
    split = (layer.num_heads, -1)
    q, k, v = [each.unflatten(-1, split).permute(apart) for each in (q, k, v)]
    mixed = F.scaled_dot_product_attention(q, k, v).permute(together).flatten(2)
    return F.linear(mixed, layer.out_proj.weight, layer.out_proj.bias)


def _mapped(layer: Any, x: Tensor) -> Tensor:
    inner = layer.activation(F.linear(x, layer.linear1.weight, layer.linear1.bias))
    return F.linear(inner, layer.linear2.weight, layer.linear2.bias)


def _encoder(layer: Any, x: Tensor) -> Tensor:
    x = _layer_norm(layer.norm1, x + _attended(layer.self_attn, x, x))
    return _layer_norm(layer.norm2, x + _mapped(layer, x))


def _decoder(layer: Any, x: Tensor, memory: Tensor) -> Tensor:
    x = _layer_norm(layer.norm1, x + _attended(layer.self_attn, x, x))
    x = _layer_norm(layer.norm2, x + _attended(layer.multihead_attn, x, memory))
    return _layer_norm(layer.norm3, x + _mapped(layer, x))


# -- recurrent networks ----------------------------------------------------------------------------


def _recurrent(name: str) -> Floor:
    function = getattr(torch, name)

    def run(layer: Any, x: Tensor) -> Any:
        weights = list(layer.weights.values())
        h = x.new_zeros(1, x.shape[1], weights[1].shape[1])
        if name == "lstm":
            out, *state = function(x, (h, h), weights, True, 1, 0.0, False, False, False)
            return out, tuple(state)
        return function(x, h, weights, True, 1, 0.0, False, False, False)

    return run


def _same(_: Any, x: Tensor) -> Tensor:
    return x


# -- all of them -----------------------------------------------------------------------------------

_FLOORS: dict[str, Floor] = {
    "Linear": _linear,
    "Bilinear": lambda layer, x, y: torch.bilinear(x, y, layer.weight, layer.bias),
    "Identity": _same,
    "Embedding": lambda layer, i: torch.embedding(layer.weight, i),
    "EmbeddingBag": _embedding_bag,
    "MultiheadAttention": _attention,
    "TransformerEncoderLayer": _encoder,
    "TransformerDecoderLayer": _decoder,
    "Flatten": lambda _, x: x.flatten(1),
    "Unflatten": lambda _, x: x.unflatten(1, (2, 2)),
    "Upsample": lambda _, x: F.interpolate(x, scale_factor=2.0),
    "UpsamplingNearest2d": lambda _, x: F.interpolate(x, (4, 4)),
    "UpsamplingBilinear2d": lambda layer, x: F.interpolate(
        x, layer.size, mode="bilinear", align_corners=True
    ),
    "PixelShuffle": lambda _, x: torch.pixel_shuffle(x, 2),
    "PixelUnshuffle": lambda _, x: torch.pixel_unshuffle(x, 2),
    "ChannelShuffle": lambda _, x: torch.channel_shuffle(x, 2),
    "CELU": lambda _, x: torch.celu(x, 1.0),
    "ELU": lambda _, x: F.elu(x, 1.0),
    "GELU": lambda _, x: F.gelu(x),
    "GLU": lambda _, x: F.glu(x, -1),
    "Hardshrink": lambda _, x: torch.hardshrink(x, 0.5),
    "Hardsigmoid": lambda _, x: F.hardsigmoid(x),
    "Hardswish": lambda _, x: F.hardswish(x),
    "Hardtanh": lambda _, x: F.hardtanh(x, -1.0, 1.0),
    "LeakyReLU": lambda _, x: F.leaky_relu(x, 0.01),
    "LogSigmoid": lambda _, x: F.logsigmoid(x),
    "Mish": lambda _, x: F.mish(x),
    "PReLU": lambda layer, x: torch.prelu(x, layer.weight),
    "RReLU": lambda _, x: F.leaky_relu(x, (1 / 8 + 1 / 3) / 2),
    "ReLU": lambda _, x: torch.relu(x),
    "ReLU6": lambda _, x: F.relu6(x),
    "SELU": lambda _, x: torch.selu(x),
    "SiLU": lambda _, x: F.silu(x),
    "Sigmoid": lambda _, x: torch.sigmoid(x),
    "Softplus": lambda _, x: F.softplus(x, 1.0, 20.0),
    "Softshrink": lambda _, x: F.softshrink(x, 0.5),
    "Softsign": lambda _, x: x / (x.abs() + 1),
    "Tanh": lambda _, x: torch.tanh(x),
    "Tanhshrink": lambda _, x: x - x.tanh(),
    "Threshold": lambda _, x: torch.threshold(x, 0.1, 1.0),
    "Softmax": lambda _, x: x.softmax(-1),
    "LogSoftmax": lambda _, x: x.log_softmax(-1),
    "Softmin": lambda _, x: (-x).softmax(-1),
    "Softmax2d": lambda _, x: x.softmax(1),
    "LayerNorm": _layer_norm,
    "RMSNorm": lambda layer, x: torch.rms_norm(x, x.shape[-1:], layer.weight, None),
    "GroupNorm": lambda layer, x: torch.group_norm(
        x, layer.num_groups, layer.weight, layer.bias, 1e-5, True
    ),
    "LocalResponseNorm": lambda layer, x: _response_norm(layer.size)(layer, x),
    **dict.fromkeys(("Dropout", "Dropout1d", "Dropout2d", "Dropout3d"), _same),  # in mode "eval"
    **dict.fromkeys(("AlphaDropout", "FeatureAlphaDropout"), _same),
    "SpectralNorm": _spectral_norm,
    "WeightNorm": _weight_norm,
    "RNNCell": _cell("rnn_tanh_cell"),
    "GRUCell": _cell("gru_cell"),
    "LSTMCell": _cell("lstm_cell"),
    "RNN": _recurrent("rnn_tanh"),
    "GRU": _recurrent("gru"),
    "LSTM": _recurrent("lstm"),
}
for _dims in (1, 2, 3):
    _FLOORS |= {
        f"Conv{_dims}d": _convolution(f"conv{_dims}d"),
        f"ConvTranspose{_dims}d": _convolution(f"conv_transpose{_dims}d"),
        f"MaxPool{_dims}d": _pooled(f"max_pool{_dims}d", 2),
        f"AvgPool{_dims}d": _pooled(f"avg_pool{_dims}d", 2),
        f"LPPool{_dims}d": _power_pooled(_dims),
        f"AdaptiveMaxPool{_dims}d": _pooled(f"adaptive_max_pool{_dims}d", 2),
        f"AdaptiveAvgPool{_dims}d": _pooled(f"adaptive_avg_pool{_dims}d", 2),
        f"MaxUnpool{_dims}d": _pooled(f"max_unpool{_dims}d", 2),
        f"ConstantPad{_dims}d": _padded(_dims, "constant", 0.5),
        f"ZeroPad{_dims}d": _padded(_dims, "constant", 0.0),
        f"ReflectionPad{_dims}d": _padded(_dims, "reflect"),
        f"ReplicationPad{_dims}d": _padded(_dims, "replicate"),
        f"CircularPad{_dims}d": _padded(_dims, "circular"),
        f"BatchNorm{_dims}d": _batch_norm,
        f"InstanceNorm{_dims}d": _instance_norm,
    }
