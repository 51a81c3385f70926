"""Immutable neural-network modules for PyTorch, as pytrees.

Declare a ``Module`` with ``Parameter``, ``Buffer`` and ``field``; ``initialize`` it; call it. Then:

- ``tree``: map, select, stack, compare and convert modules and any other trees.
- ``func``: gradients, Jacobians, vmap, with the names of ``torch.func``.
- ``random``, ``effects``: keys and draws; what a forward would write into itself.
- ``optim``, ``nn``: the optimizers and layers of torch as pure functions and immutable modules.
- ``compile``, ``load_compiled``: a whole function of trees as one graph, also from a file.
- ``bridge``, ``io``: to and from ``torch.nn``; files.
- ``distributed``: one model over many processes.
- ``debug``, ``registry``: checks at run time; classes of yours as nodes of trees.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    with warnings.catch_warnings():
        # torch warns on import where numpy is missing; nothing here needs it.
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        import torch as _torch  # noqa: F401
except KeyboardInterrupt:
    # Python imports this file before the program of `python -m parallax`, which ends quietly.
    if sys.argv[:1] != ["-m"]:
        raise
    print("interrupted", file=sys.stderr)
    sys.exit(130)

from parallax import effects, random, tree
from parallax.core import pickles as _pickles  # noqa: F401  # files of 0.1 find what has moved
from parallax.core import registry
from parallax.core.fields import Buffer, Parameter, UninitializedError, field
from parallax.core.module import Module

if TYPE_CHECKING:
    from parallax import bridge, debug, distributed, func, io, nn, optim
    from parallax.compiler import compile, load_compiled  # noqa: A004  # named as torch.compile

__all__ = [
    "Buffer",
    "Module",
    "Parameter",
    "UninitializedError",
    "bridge",
    "compile",
    "debug",
    "distributed",
    "effects",
    "field",
    "func",
    "io",
    "load_compiled",
    "nn",
    "optim",
    "random",
    "registry",
    "tree",
]
__version__ = "0.2.0"


if not TYPE_CHECKING:  # checkers would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name in ("compile", "load_compiled"):
            value = getattr(import_module("parallax.compiler"), name)
        elif name in ("bridge", "debug", "distributed", "func", "io", "nn", "optim"):
            value = import_module(f"parallax.{name}")
        else:
            from parallax._errors.absent import no_such_name

            raise no_such_name("parallax", name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
