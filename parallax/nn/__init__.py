"""Layers with the names, arguments, shapes, numbers and state dicts of ``torch.nn``.

Each is an immutable module whose maths is ``torch.nn.functional``'s. What is random reads
``self.rng``, what has state emits it; nothing is written in place. The device of the parameters is
``initialize(device=)``'s, or that of the checkpoint that ``bridge.load_state_dict`` reads.
"""

from parallax.nn.activation import (
    GELU,
    Hardsigmoid,
    Hardswish,
    Hardtanh,
    LogSigmoid,
    Mish,
    Sigmoid,
    SiLU,
    Softplus,
    Softsign,
    Tanh,
)
from parallax.nn.adaptive import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
)
from parallax.nn.attention import MultiheadAttention
from parallax.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from parallax.nn.caching import KVCache
from parallax.nn.containers import MLP, Lambda, Residual, Sequential
from parallax.nn.conv import Conv1d, Conv2d, Conv3d
from parallax.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
)
from parallax.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from parallax.nn.linear import Bilinear, Identity, Linear
from parallax.nn.normalization import GroupNorm, LayerNorm, LocalResponseNorm, RMSNorm
from parallax.nn.padding import ZeroPad1d, ZeroPad2d, ZeroPad3d
from parallax.nn.pooling import AvgPool1d, AvgPool2d, AvgPool3d, MaxPool1d, MaxPool2d, MaxPool3d
from parallax.nn.powerpool import LPPool1d, LPPool2d, LPPool3d
from parallax.nn.rectifiers import CELU, ELU, SELU, LeakyReLU, PReLU, ReLU, ReLU6, RReLU, Threshold
from parallax.nn.rotary import RotaryEmbedding
from parallax.nn.shrinking import Hardshrink, Softshrink, Tanhshrink
from parallax.nn.softmax import GLU, LogSoftmax, Softmax, Softmax2d, Softmin
from parallax.nn.transformer import (
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from parallax.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from parallax.nn.unpooling import (
    FractionalMaxPool2d,
    FractionalMaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "GLU",
    "MLP",
    "SELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AlphaDropout",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Bilinear",
    "CircularPad1d",
    "CircularPad2d",
    "CircularPad3d",
    "ConstantPad1d",
    "ConstantPad2d",
    "ConstantPad3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "FractionalMaxPool2d",
    "FractionalMaxPool3d",
    "GroupNorm",
    "Hardshrink",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "KVCache",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "Lambda",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSigmoid",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "Mish",
    "MultiheadAttention",
    "PReLU",
    "RMSNorm",
    "RReLU",
    "ReLU",
    "ReLU6",
    "ReflectionPad1d",
    "ReflectionPad2d",
    "ReflectionPad3d",
    "ReplicationPad1d",
    "ReplicationPad2d",
    "ReplicationPad3d",
    "Residual",
    "RotaryEmbedding",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softmax2d",
    "Softmin",
    "Softplus",
    "Softshrink",
    "Softsign",
    "Tanh",
    "Tanhshrink",
    "Threshold",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "ZeroPad1d",
    "ZeroPad2d",
    "ZeroPad3d",
]
