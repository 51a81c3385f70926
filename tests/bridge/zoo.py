"""Every layer class of ``torch.nn`` with small arguments, and inputs for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Layer(NamedTuple):
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]


def _batch(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape),)


def _pair(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape), torch.randn(*shape))


def _ints(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


_IMAGE, _SERIES, _VOLUME = (2, 4, 8, 8), (2, 4, 8), (2, 4, 4, 4, 4)
_LAYERS: dict[str, tuple[tuple[Any, ...], dict[str, Any], Callable[[], tuple[Any, ...]]]] = {}


def _add(names: str, arguments: tuple[Any, ...], inputs: Any, **keywords: Any) -> None:
    for name in names.split():
        _LAYERS[name] = (arguments, keywords, inputs)


_add(
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh Identity LeakyReLU LogSigmoid "
    "Mish PReLU RReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink "
    "Flatten Dropout AlphaDropout FeatureAlphaDropout Dropout1d", (), _batch(2, 4, 8),
)  # fmt: skip
_add("Dropout2d Softmax2d", (), _batch(*_IMAGE))
_add("Dropout3d", (), _batch(*_VOLUME))
_add("LogSoftmax Softmax Softmin", (1,), _batch(2, 4))
_add("Threshold", (0.1, 0.0), _batch(2, 4))
_add("Linear", (4, 3), _batch(2, 4))
_add("Bilinear", (4, 4, 3), _pair(2, 4))
_add("Conv1d ConvTranspose1d", (4, 6, 3), _batch(*_SERIES))
_add("Conv2d ConvTranspose2d", (4, 6, 3), _batch(*_IMAGE))
_add("Conv3d ConvTranspose3d", (4, 2, 3), _batch(*_VOLUME))
_add("BatchNorm1d InstanceNorm1d", (4,), _batch(*_SERIES), affine=True, track_running_stats=True)
_add("BatchNorm2d InstanceNorm2d", (4,), _batch(*_IMAGE), affine=True, track_running_stats=True)
_add("BatchNorm3d InstanceNorm3d", (4,), _batch(*_VOLUME), affine=True, track_running_stats=True)
_add("SyncBatchNorm", (4,), _batch(*_SERIES))
_add("LayerNorm RMSNorm", (8,), _batch(2, 4, 8))
_add("GroupNorm", (2, 4), _batch(*_IMAGE))
_add("LocalResponseNorm CrossMapLRN2d", (2,), _batch(*_IMAGE))
_add("AvgPool1d MaxPool1d AdaptiveAvgPool1d AdaptiveMaxPool1d", (2,), _batch(*_SERIES))
_add("AvgPool2d MaxPool2d AdaptiveAvgPool2d AdaptiveMaxPool2d", (2,), _batch(*_IMAGE))
_add("AvgPool3d MaxPool3d AdaptiveAvgPool3d AdaptiveMaxPool3d", (2,), _batch(*_VOLUME))
_add("LPPool1d", (2, 2), _batch(*_SERIES))
_add("LPPool2d", (2, 2), _batch(*_IMAGE))
_add("LPPool3d", (2, 2), _batch(*_VOLUME))
_add("MaxUnpool1d", (2,), lambda: (torch.randn(2, 4, 4), torch.arange(0, 8, 2).expand(2, 4, 4)))
_add("MaxUnpool2d", (2,), lambda: (torch.randn(1, 1, 2, 2), torch.tensor([[[[0, 2], [8, 10]]]])))
_add("MaxUnpool3d", (2,), lambda: (torch.randn(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1).long()))
_add("FractionalMaxPool2d", (2,), _batch(*_IMAGE), output_size=3,
     _random_samples=torch.full((2, 4, 2), 0.5))  # fmt: skip
_add("FractionalMaxPool3d", (2,), _batch(*_VOLUME), output_size=2,
     _random_samples=torch.full((2, 4, 3), 0.5))  # fmt: skip
for _kind in ("Circular", "Constant", "Reflection", "Replication", "Zero"):
    _value = (1, 0.5) if _kind == "Constant" else (1,)
    _add(f"{_kind}Pad1d", _value, _batch(*_SERIES))
    _add(f"{_kind}Pad2d", _value, _batch(*_IMAGE))
    _add(f"{_kind}Pad3d", _value, _batch(*_VOLUME))
_add("Embedding", (5, 4), lambda: (_ints(5, 2, 3),), padding_idx=0)
_add("EmbeddingBag", (5, 4), lambda: (_ints(5, 2, 3),))
_add("RNN GRU LSTM", (4, 3), _batch(5, 2, 4), num_layers=2, bidirectional=True)
_add("RNNCell GRUCell LSTMCell", (4, 3), _batch(2, 4))
_add("MultiheadAttention", (4, 2), lambda: (torch.randn(3, 2, 4),) * 3)
_add("TransformerEncoderLayer", (4, 2, 8), _batch(2, 3, 4), batch_first=True)
_add("TransformerDecoderLayer", (4, 2, 8), _pair(2, 3, 4), batch_first=True)
_add("Transformer", (4, 2, 1, 1, 8), _pair(2, 3, 4), batch_first=True)
_add("PixelShuffle", (2,), _batch(*_IMAGE))
_add("PixelUnshuffle ChannelShuffle", (2,), _batch(*_IMAGE))
_add("Upsample", (), _batch(*_IMAGE), scale_factor=2)
_add("UpsamplingBilinear2d UpsamplingNearest2d", (), _batch(*_IMAGE), scale_factor=2)
_add("Unflatten", (1, (2, 2)), _batch(2, 4))
_add("Fold", ((4, 4), 2), _batch(2, 8, 9))
_add("Unfold", (2,), _batch(*_IMAGE))
_add("CosineSimilarity PairwiseDistance", (), _pair(2, 4))
_add(
    "AdaptiveLogSoftmaxWithLoss",
    (16, 6, [2, 4]),
    lambda: (torch.randn(3, 16), _ints(6, 3)),
    div_value=2.0,
)
_add("CrossEntropyLoss MultiMarginLoss", (), lambda: (torch.randn(3, 4), _ints(4, 3)))
_add("NLLLoss", (), lambda: (torch.randn(3, 4).log_softmax(1), _ints(4, 3)))
_add("NLLLoss2d", (), lambda: (torch.randn(1, 2, 3, 3), _ints(2, 1, 3, 3)))
_add("L1Loss MSELoss SmoothL1Loss HuberLoss KLDivLoss", (), _pair(2, 4), reduction="sum")
_add("PoissonNLLLoss", (), lambda: (torch.randn(3), torch.rand(3)))
_add("GaussianNLLLoss", (), lambda: (torch.randn(3), torch.randn(3), torch.rand(3) + 0.1))
_add("BCELoss", (), lambda: (torch.rand(3), torch.rand(3)))
_add("BCEWithLogitsLoss", (), lambda: (torch.randn(3), torch.rand(3)),
     pos_weight=torch.tensor([2.0]))  # fmt: skip
_add("HingeEmbeddingLoss SoftMarginLoss", (), lambda: (torch.randn(4), torch.randn(4).sign()))
_add("MultiLabelSoftMarginLoss", (), lambda: (torch.randn(2, 3), _ints(2, 2, 3).float()))
_add(
    "MultiLabelMarginLoss", (), lambda: (torch.randn(2, 3), torch.tensor([[0, -1, 0], [1, 2, -1]]))
)
_add("CosineEmbeddingLoss", (),
     lambda: (torch.randn(2, 4), torch.randn(2, 4), torch.tensor([1, -1])))  # fmt: skip
_add("MarginRankingLoss", (), lambda: (torch.randn(3), torch.randn(3), torch.ones(3)))
_add("TripletMarginLoss TripletMarginWithDistanceLoss", (),
     lambda: (torch.randn(2, 4), torch.randn(2, 4), torch.randn(2, 4)))  # fmt: skip
_add("LinearCrossEntropyLoss", (4, 6), lambda: (torch.randn(3, 4), _ints(6, 3)))
_add("CTCLoss", (), lambda: (torch.randn(6, 1, 4).log_softmax(2), torch.tensor([[1, 2]]),
                             torch.tensor([6]), torch.tensor([2])))  # fmt: skip

# Built of other modules, so made by hand; or lazy, and refused.
_BY_HAND: dict[str, Layer] = {
    "Sequential": Layer(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()), _batch(2, 4)),
    "TransformerEncoder": Layer(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2),
        _batch(2, 3, 4),
    ),
    "TransformerDecoder": Layer(
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), 2),
        _pair(2, 3, 4),
    ),
}
CONTAINERS = ("ModuleList", "ModuleDict", "ParameterList", "ParameterDict", "Container", "Module")


def public_layers() -> list[str]:
    """The names of all public module classes of ``torch.nn``, lazy ones and containers aside."""
    return sorted(
        name
        for name, cls in vars(nn).items()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and not name.startswith("Lazy")
        and name not in CONTAINERS and name not in ("DataParallel", "RNNBase", "RNNCellBase")
        and cls.__name__ == name
    )  # fmt: skip


def layer(name: str) -> Layer:
    """How to make a layer and its inputs."""
    if name in _BY_HAND:
        return _BY_HAND[name]
    arguments, keywords, inputs = _LAYERS[name]
    return Layer(lambda: getattr(nn, name)(*arguments, **keywords), inputs)
