"""Layers with the names, arguments, shapes, numbers and state dicts of ``torch.nn``.

Each is an immutable module that computes with ``torch.nn.functional``. Random layers read
``self.rng``, layers with state emit it, and nothing is written in place. ``initialize(device=)``
decides on which device the parameters are, or the checkpoint that ``bridge.load_state_dict`` reads.
"""

from typing import TYPE_CHECKING, Any

from parallax._errors.absent import answer_calls
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
from parallax.nn.adapting import lora, merge_lora
from parallax.nn.adaptive import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
)
from parallax.nn.attention import MultiheadAttention
from parallax.nn.bags import EmbeddingBag
from parallax.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from parallax.nn.caching import KVCache
from parallax.nn.classification import CrossEntropyLoss, MultiMarginLoss, NLLLoss
from parallax.nn.computed import Masked, Parametrized
from parallax.nn.containers import MLP, Lambda, Residual, Sequential
from parallax.nn.conv import Conv1d, Conv2d, Conv3d
from parallax.nn.ctc import CTCLoss
from parallax.nn.distances import CosineSimilarity, PairwiseDistance
from parallax.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
)
from parallax.nn.embedding import Embedding
from parallax.nn.families import complete
from parallax.nn.folding import Fold, Unfold
from parallax.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from parallax.nn.labels import (
    BCELoss,
    BCEWithLogitsLoss,
    MultiLabelMarginLoss,
    MultiLabelSoftMarginLoss,
)
from parallax.nn.linear import Bilinear, Identity, Linear
from parallax.nn.lora import LoRA
from parallax.nn.many_classes import AdaptiveLogSoftmaxWithLoss, LinearCrossEntropyLoss
from parallax.nn.margins import (
    CosineEmbeddingLoss,
    HingeEmbeddingLoss,
    MarginRankingLoss,
    SoftMarginLoss,
    TripletMarginLoss,
    TripletMarginWithDistanceLoss,
)
from parallax.nn.mirroring import (
    CircularPad1d,
    CircularPad2d,
    CircularPad3d,
    ReflectionPad1d,
    ReflectionPad2d,
    ReflectionPad3d,
    ReplicationPad1d,
    ReplicationPad2d,
    ReplicationPad3d,
)
from parallax.nn.normalization import (
    CrossMapLRN2d,
    GroupNorm,
    LayerNorm,
    LocalResponseNorm,
    RMSNorm,
)
from parallax.nn.orthogonal import Orthogonal
from parallax.nn.padding import (
    ConstantPad1d,
    ConstantPad2d,
    ConstantPad3d,
    ZeroPad1d,
    ZeroPad2d,
    ZeroPad3d,
)
from parallax.nn.parametrize import SpectralNorm, WeightNorm
from parallax.nn.pooling import AvgPool1d, AvgPool2d, AvgPool3d, MaxPool1d, MaxPool2d, MaxPool3d
from parallax.nn.powerpool import LPPool1d, LPPool2d, LPPool3d
from parallax.nn.rectifiers import CELU, ELU, SELU, LeakyReLU, PReLU, ReLU, ReLU6, RReLU, Threshold
from parallax.nn.regression import (
    GaussianNLLLoss,
    HuberLoss,
    KLDivLoss,
    L1Loss,
    MSELoss,
    PoissonNLLLoss,
    SmoothL1Loss,
)
from parallax.nn.rnn import GRU, LSTM, RNN
from parallax.nn.rnn_cells import GRUCell, LSTMCell, RNNCell
from parallax.nn.rotary import RotaryEmbedding
from parallax.nn.shaping import ChannelShuffle, Flatten, PixelShuffle, PixelUnshuffle, Unflatten
from parallax.nn.shrinking import Hardshrink, Softshrink, Tanhshrink
from parallax.nn.softmax import GLU, LogSoftmax, Softmax, Softmax2d, Softmin
from parallax.nn.stack import Stack
from parallax.nn.syncnorm import SyncBatchNorm
from parallax.nn.transformer import Transformer, TransformerDecoder, TransformerEncoder
from parallax.nn.transformer_layers import TransformerDecoderLayer, TransformerEncoderLayer
from parallax.nn.transposed import ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from parallax.nn.unpooling import (
    FractionalMaxPool2d,
    FractionalMaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
)
from parallax.nn.upsampling import Upsample, UpsamplingBilinear2d, UpsamplingNearest2d

__all__ = [
    "CELU", "ELU", "GELU", "GLU", "GRU", "LSTM", "MLP", "RNN", "SELU", "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveLogSoftmaxWithLoss", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AlphaDropout", "AvgPool1d", "AvgPool2d", "AvgPool3d",
    "BCELoss", "BCEWithLogitsLoss", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "Bilinear",
    "CTCLoss", "ChannelShuffle", "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d",
    "ConstantPad2d", "ConstantPad3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d",
    "ConvTranspose2d", "ConvTranspose3d", "CosineEmbeddingLoss", "CosineSimilarity",
    "CrossEntropyLoss", "CrossMapLRN2d", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d",
    "Embedding", "EmbeddingBag", "FeatureAlphaDropout", "Flatten", "Fold", "FractionalMaxPool2d",
    "FractionalMaxPool3d", "GRUCell", "GaussianNLLLoss", "GroupNorm", "Hardshrink", "Hardsigmoid",
    "Hardswish", "Hardtanh", "HingeEmbeddingLoss", "HuberLoss", "Identity", "InstanceNorm1d",
    "InstanceNorm2d", "InstanceNorm3d", "KLDivLoss", "KVCache", "L1Loss", "LPPool1d", "LPPool2d",
    "LPPool3d", "LSTMCell", "Lambda", "LayerNorm", "LeakyReLU", "Linear", "LinearCrossEntropyLoss",
    "LoRA", "LocalResponseNorm", "LogSigmoid", "LogSoftmax", "MSELoss", "MarginRankingLoss",
    "Masked", "MaxPool1d", "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
    "Mish", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss", "MultiMarginLoss",
    "MultiheadAttention", "NLLLoss", "Orthogonal", "PReLU", "PairwiseDistance", "Parametrized",
    "PixelShuffle", "PixelUnshuffle", "PoissonNLLLoss", "RMSNorm", "RNNCell", "RReLU", "ReLU",
    "ReLU6", "ReflectionPad1d", "ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d",
    "ReplicationPad2d", "ReplicationPad3d", "Residual", "RotaryEmbedding", "Sequential", "SiLU",
    "Sigmoid", "SmoothL1Loss", "SoftMarginLoss", "Softmax", "Softmax2d", "Softmin", "Softplus",
    "Softshrink", "Softsign", "SpectralNorm", "Stack", "SyncBatchNorm", "Tanh", "Tanhshrink",
    "Threshold", "Transformer", "TransformerDecoder", "TransformerDecoderLayer",
    "TransformerEncoder", "TransformerEncoderLayer", "TripletMarginLoss",
    "TripletMarginWithDistanceLoss", "Unflatten", "Unfold", "Upsample", "UpsamplingBilinear2d",
    "UpsamplingNearest2d", "WeightNorm", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d", "lora",
    "merge_lora",
]  # fmt: skip

if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


for _name in __all__:
    if isinstance(globals()[_name], type):
        complete(globals()[_name])


answer_calls(__name__, globals())
