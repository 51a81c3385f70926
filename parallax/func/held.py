"""What an object holds, for those that search what a function reaches beside its arguments."""

from __future__ import annotations

import functools
import types
from typing import Any

__all__ = ["held_by", "names_of"]

Names = list[tuple[dict[str, Any], str]]


def held_by(item: Any) -> list[Any]:
    """What a function, method, partial, cell, container or object holds.

    What a function names in its module is not among it.
    """
    if isinstance(item, types.FunctionType):
        own = [*(item.__closure__ or ()), *(item.__defaults__ or ()), *vars(item).values()]
        return [*own, *(item.__kwdefaults__ or {}).values()]
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


def names_of(item: types.FunctionType) -> Names:
    """The names that a function, and those written in it, look up in its module."""
    space, queue, names = item.__globals__, [item.__code__], []
    while queue:
        code = queue.pop()
        names += [(space, name) for name in code.co_names if name in space]
        queue += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return names
