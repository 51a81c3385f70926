"""Immutable neural-network modules for PyTorch, as pytrees."""

from parallax import bridge, debug, effects, func, io, optim, random, registry, tree
from parallax.compiler import compile
from parallax.fields import Buffer, Parameter, UninitializedError, field
from parallax.module import Module

__all__ = [
    "Buffer",
    "Module",
    "Parameter",
    "UninitializedError",
    "bridge",
    "compile",
    "debug",
    "effects",
    "field",
    "func",
    "io",
    "optim",
    "random",
    "registry",
    "tree",
]
__version__ = "0.1.0"
