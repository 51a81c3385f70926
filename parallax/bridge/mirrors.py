"""The layers of ``torch.nn`` that layers of ours are lowered to.

A layer that has the arguments and names of one of ``torch.nn`` becomes an instance of its class, so
that whatever looks for a ``torch.nn.Linear`` finds it: parallel plans, quantization, adapters,
``SyncBatchNorm``. If ours runs the same kernel and nothing else, it is that very class. Otherwise
it is a subclass that runs our code, which has derivatives where torch's has none, or wrong ones.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from inspect import Parameter
from typing import Any

from torch import nn

from parallax._compat.opaque import real
from parallax.bridge.places import held, structure_in
from parallax.core.structure import Structure, derived

__all__ = ["changed_constant", "layer_of", "mirror_of", "runs_our_code"]

_SAME = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d", "AlphaDropout", "AvgPool1d", "AvgPool2d",
    "AvgPool3d", "Bilinear", "CELU", "ChannelShuffle", "ConstantPad1d", "ConstantPad2d",
    "ConstantPad3d", "Conv1d", "Conv2d", "Conv3d", "Dropout", "Dropout1d", "Dropout2d",
    "Dropout3d", "ELU", "FeatureAlphaDropout", "Flatten", "GELU", "Hardshrink", "Hardswish",
    "Hardtanh", "Identity", "LeakyReLU", "Linear", "LogSigmoid", "LogSoftmax", "MaxPool1d",
    "MaxPool2d", "MaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "Mish", "PReLU",
    "PixelShuffle", "PixelUnshuffle", "ReLU", "ReLU6", "SELU", "Sequential", "SiLU", "Sigmoid",
    "Softmax", "Softmax2d", "Softmin", "Softplus", "Softshrink", "Tanh", "Tanhshrink",
    "Threshold", "Unflatten", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
]  # fmt: skip
_OTHERS = [
    "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "CircularPad1d", "CircularPad2d",
    "CircularPad3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding",
    "GLU", "GRUCell", "GroupNorm", "Hardsigmoid", "InstanceNorm1d", "InstanceNorm2d",
    "InstanceNorm3d", "LPPool1d", "LPPool2d", "LPPool3d", "LSTMCell", "LayerNorm",
    "LocalResponseNorm", "RMSNorm", "RNNCell", "RReLU", "ReflectionPad1d", "ReflectionPad2d",
    "ReflectionPad3d", "ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d", "Softsign",
]  # fmt: skip
_CODE = ("__call__", "__state_name__")


@functools.cache
def _table() -> dict[type, type[nn.Module]]:
    from parallax import nn as layers  # stands on this room

    return {getattr(layers, name): getattr(nn, name) for name in (*_SAME, *_OTHERS)}


def layer_of(cls: Any) -> type[nn.Module] | None:
    """The class of ``torch.nn`` that a module class has the fields and the code of, if any."""
    for base in cls.__mro__:
        found = _table().get(base)
        if found is not None:
            one, two = cls.__layout__, base.__layout__
            fields = (one.children, one.constants) == (two.children, two.constants)
            same = [getattr(cls, k, None) is getattr(base, k, None) for k in _CODE]
            return found if fields and all(same) else None
    return None


def runs_our_code(structure: Structure) -> bool:
    """Whether the code of a layer is more than that of the class of ``torch.nn`` it has."""
    layer: Any = layer_of(structure.cls)
    constants = _constants(structure)
    plain = constants.get("padding_idx") is None and constants.get("max_norm") is None
    return layer.__name__ not in _SAME and not (layer is nn.Embedding and plain)


def mirror_of(structure: Structure, tensors: Sequence[Any]) -> nn.Module | None:
    """A layer of ``torch.nn`` for one of ours, its own tensors on the meta device.

    Args:
        structure: of a module.
        tensors: of its places.

    Returns:
        The layer, its tensors and children still to be registered; ``None`` if torch has none
        like it.
    """
    layer: Any = layer_of(structure.cls)
    if layer is None:
        return None
    if layer is nn.Sequential:
        return None if _ties_buffers(structure) else nn.Sequential()
    constants = _constants(structure)
    leaves = structure.cls.__layout__.children  # type: ignore[attr-defined]  # a module class
    present = {name: tensor is not None for name, tensor in zip(leaves, tensors, strict=True)}
    given = {**present, **constants, "device": "meta"}
    parameters = inspect.signature(layer.__init__).parameters.values()
    named = [p.name for p in parameters if p.kind is Parameter.POSITIONAL_OR_KEYWORD]
    made: nn.Module = layer(**{name: given[name] for name in named if name in given})
    return made


def _constants(structure: Structure) -> dict[str, Any]:
    names = structure.cls.__layout__.constants  # type: ignore[attr-defined]  # a module class
    return dict(zip(names, structure.local.constants, strict=True))


def _ties_buffers(structure: Structure) -> bool:
    """Whether a buffer stands in two places: torch makes two of it when a model is converted."""
    firsts = [structure.first.index(first) for _, first in structure.ties]
    return any(structure.roles[index] == "buffer" for index in firsts)


def changed_constant(module: nn.Module, structure: Structure) -> str | None:
    """The name of an attribute that is another than when a module was lowered.

    Args:
        module: lowered.
        structure: what it was lowered from.
    """
    now: Structure = structure_in(module)
    if not _fit(now, structure):
        return "constant"
    present = [held(module, name) is not None for name in _own_leaves(structure)]
    for name, value in _made_with(structure, tuple(present)).items():
        if vars(module).get(name) != value:
            return name
    return None


def _runs_torchs_code(structure: Structure) -> bool:
    layer = layer_of(structure.cls)
    return layer not in (None, nn.Sequential) and not runs_our_code(structure)


@real
def _fit(one: Structure, two: Structure) -> bool:
    return one is two or one.skeleton == two.skeleton


@real
def _own_leaves(structure: Structure) -> tuple[str, ...]:
    """The names of the tensors of a layer that runs torch's code."""
    own = _runs_torchs_code(structure)
    return structure.cls.__layout__.children if own else ()  # type: ignore[attr-defined]  # a module class


@real
@derived
def _made_with(structure: Structure, present: tuple[bool, ...]) -> dict[str, Any]:
    """The attributes that torch's code reads, as the layer was made."""
    if not _runs_torchs_code(structure):
        return {}
    made = vars(mirror_of(structure, [leaf or None for leaf in present]))
    return {name: made[name] for name in _constants(structure) if name in made}
