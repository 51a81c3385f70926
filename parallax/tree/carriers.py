"""Leaves that hold tensors and cannot be taken apart: dataclasses, methods of them, closures."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

from torch import Tensor, nn

from parallax.core.nodes import is_module

__all__ = ["carried", "holds_tensor", "refuse_carrier"]

_MOST = 200  # parts that are looked at


def carried(leaf: Any) -> str | None:
    """What a leaf is that holds a tensor or module, and what to write instead.

    Args:
        leaf: of a tree.

    Returns:
        Two phrases for an error message; ``None`` for leaves of other kinds, or that hold none.
    """
    if not _is_carrier(leaf) or not holds_tensor(leaf):
        return None
    if isinstance(leaf, types.MethodType):
        owner, name = type(leaf.__self__).__name__, leaf.__name__
        if isinstance(leaf.__self__, nn.Module):
            return (
                f"the method {name} of a {owner}, a torch.nn.Module, which is not taken apart. "
                f"Lift it: bridge.lift(module), and give that, or a method of it"
            )
        return f"the method {name} of a {owner}, which is not taken apart. {_node(owner, leaf)}"
    name = type(leaf).__name__
    if isinstance(leaf, functools.partial):
        return f"a {name}, which is not taken apart. Give a functools.partial itself"
    return f"a dataclass {name}, which is not taken apart. {_node(name, leaf)}"


def _node(name: str, leaf: Any) -> str:
    """What to write to have instances of a class be taken apart."""
    if dataclasses.is_dataclass(getattr(leaf, "__self__", leaf)):
        return (
            f"Make it a node of trees where it is defined: torch.export.register_dataclass({name})"
        )
    return f"Say how a {name} is taken apart: parallax.registry.register({name}, ...)"


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


def holds_tensor(leaf: Any) -> bool:
    """Whether there is a tensor or module in what an object, method or function holds."""
    ahead: list[Any] = [leaf, *getattr(leaf, "__dict__", {}).values()]
    for _ in range(_MOST):
        if not ahead:
            return False
        item = ahead.pop()
        if isinstance(item, (Tensor, nn.Module)) or is_module(item):
            return True
        if isinstance(item, types.FunctionType):
            ahead += [*(item.__closure__ or ()), *(item.__defaults__ or ())]
            ahead += (item.__kwdefaults__ or {}).values()
        elif isinstance(item, types.CellType):
            ahead += _content(item)
        elif isinstance(item, types.MethodType):
            ahead += [item.__self__, *getattr(item.__self__, "__dict__", {}).values()]
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


def _content(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not filled yet
        return []
