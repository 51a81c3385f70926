"""Leaves that hold tensors and cannot be taken apart: bound methods, partials, dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

from torch import Tensor

from parallax.core.nodes import is_module

__all__ = ["carried", "refuse_carrier"]

_MOST = 200  # parts that are looked at


def carried(leaf: Any) -> str | None:
    """What a leaf is that holds a tensor or module, and what to write instead.

    Args:
        leaf: of a tree.

    Returns:
        Two phrases for an error message; ``None`` for leaves of other kinds, or that hold none.
    """
    if not _is_carrier(leaf) or not _holds_tensor(leaf):
        return None
    if isinstance(leaf, types.MethodType):
        owner, name = type(leaf.__self__).__name__, leaf.__name__
        return (
            f"the method {name} of a {owner}, which is called and no tree. Give the module itself, "
            f"and call it where it is needed: lambda module, x: module.{name}(x)"
        )
    if isinstance(leaf, functools.partial):
        name = getattr(leaf.func, "__name__", type(leaf.func).__name__)
        return (
            f"a partial of {name}, which is called and no tree. Give what it holds as arguments of "
            f"their own: lambda module, x: {name}(module, x)"
        )
    name = type(leaf).__name__
    return (
        f"a dataclass {name}, which is not taken apart. Make it a node of trees where it is "
        f"defined: torch.export.register_dataclass({name})"
    )


def refuse_carrier(leaf: Any) -> None:
    """Raises if a leaf holds tensors that an operation on numbers would leave out.

    Raises:
        TypeError: naming what it is, and what to write instead.
    """
    told = carried(leaf)
    if told is not None:
        raise TypeError(f"a leaf of the tree is {told}")


def _is_carrier(leaf: Any) -> bool:
    if isinstance(leaf, (types.MethodType, functools.partial)):
        return True
    return dataclasses.is_dataclass(leaf) and not isinstance(leaf, type) and not is_module(leaf)


def _holds_tensor(leaf: Any) -> bool:
    """Whether there is a tensor or module in the parts of a carrier."""
    ahead: list[Any] = [leaf]
    for _ in range(_MOST):
        if not ahead:
            return False
        item = ahead.pop()
        if isinstance(item, Tensor) or is_module(item):
            return True
        if isinstance(item, types.MethodType):
            ahead.append(item.__self__)
        elif isinstance(item, functools.partial):
            ahead += [item.func, *item.args, *item.keywords.values()]
        elif isinstance(item, dict):
            ahead += item.values()
        elif isinstance(item, (list, tuple)):
            ahead += item
        elif _is_carrier(item):
            names = [field.name for field in dataclasses.fields(item)]
            ahead += [getattr(item, name, None) for name in names]
    return False
