"""Immutable neural-network modules for PyTorch, as pytrees."""

from parallax import debug, effects, func, random, registry, tree
from parallax.compiler import compile
from parallax.fields import Buffer, Parameter, UninitializedError, field
from parallax.module import Module

__all__ = [
    "Buffer",
    "Module",
    "Parameter",
    "UninitializedError",
    "compile",
    "debug",
    "effects",
    "field",
    "func",
    "random",
    "registry",
    "tree",
]
__version__ = "0.1.0"
