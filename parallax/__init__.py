"""Immutable neural-network modules for PyTorch, as pytrees.

Where things are, from the ground up; imports go downwards only.

1. What a tree is: ``fields`` and ``kinds`` (what may be declared), ``constants``, ``structure``
   and ``shape`` (a tree without its leaves, and the code that builds one), ``registry`` (optree's
   and torch's registries), ``tracing`` (the same under dynamo), ``_compat`` (private torch API).
2. What is done with trees: ``tree``; ``random`` and ``effects`` for what must be explicit.
3. ``module``: declared by ``declare``, ``layout``, ``sealing`` and ``metaclass``; ``notes`` holds
   its modes and marks, ``display`` shows it, ``initialize`` fills it.
4. ``func`` (derivatives and vmap), ``compiler``, ``optim``, ``bridge``, ``io``, ``debug``, and the
   layers of ``nn``: loaded when they are first asked for, so that ``import parallax`` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from parallax import effects, random, registry, tree
from parallax.fields import Buffer, Parameter, UninitializedError, field
from parallax.module import Module

if TYPE_CHECKING:
    from parallax import bridge, debug, func, io, nn, optim
    from parallax.compiler import compile  # noqa: A004  # named as torch.compile

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
    "nn",
    "optim",
    "random",
    "registry",
    "tree",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "compile":
        value = import_module("parallax.compiler").compile
    elif name in ("bridge", "debug", "func", "io", "nn", "optim"):
        value = import_module(f"parallax.{name}")
    else:
        raise AttributeError(f"module 'parallax' has no attribute {name!r}")
    globals()[name] = value
    return value
