"""Tensors that a function reaches beside its arguments, and may write into.

``torch.func`` refuses such a write. On the tape it works; but where a value of the function is
written, the tensor would keep its graph, and the graph would grow with every call.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from parallax.core.nodes import is_module

__all__ = ["are_held", "tensors_reached"]

_MOST = 2_000  # objects that are looked at
_ENDS = (type, types.ModuleType, nn.Module, str, bytes, int, float, complex, type(None))


def are_held(leaves: Sequence[Tensor]) -> bool:
    """Whether something beside this list holds one of the tensors, such as a graph.

    torch counts what holds a tensor in C++ as one reference of Python.
    """
    return any([sys.getrefcount(leaf) > _BY_ONE_LIST for leaf in leaves])


_BY_ONE_LIST = max([sys.getrefcount(item) for item in [object()]])


def tensors_reached(function: Callable[..., Any]) -> list[Tensor]:
    """The tensors in what a function closes over, is bound to, or names in its module.

    Looked through are functions, methods, containers and attributes; modules are immutable.
    """
    found: list[Tensor] = []
    stack: list[Any] = [function]
    seen: set[int] = set()
    while stack and len(seen) < _MOST:
        item = stack.pop()
        if id(item) in seen or isinstance(item, _ENDS) or is_module(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        else:
            stack += _below(item)
    return found


def _below(item: Any) -> list[Any]:
    if isinstance(item, types.FunctionType):
        space = item.__globals__
        named = [space[name] for name in item.__code__.co_names if name in space]
        return [*(item.__closure__ or ()), *(item.__defaults__ or ()), *vars(item).values(), *named]
    if isinstance(item, types.CellType):
        try:
            return [item.cell_contents]
        except ValueError:  # not filled yet
            return []
    if isinstance(item, types.MethodType):
        return [item.__self__, item.__func__]
    if isinstance(item, functools.partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, dict):
        return list(item.values())
    if isinstance(item, (list, tuple, set, frozenset)):
        return list(item)
    return list(getattr(item, "__dict__", {}).values())
