"""Immutable neural-network modules for PyTorch, as pytrees."""

from parallax import debug, effects, random, registry, tree
from parallax.fields import Buffer, Parameter, UninitializedError, field
from parallax.module import Module

__all__ = [
    "Buffer",
    "Module",
    "Parameter",
    "UninitializedError",
    "debug",
    "effects",
    "field",
    "random",
    "registry",
    "tree",
]
__version__ = "0.1.0"
