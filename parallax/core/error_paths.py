"""Finds the path of a module in the tree that holds it, for error messages.

Modules have no parent pointer. After an error the variables of the callers are searched for a tree
that holds the module.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from parallax._compat.dynamo import is_compiling
from parallax.core.containers import keys_of, opened
from parallax.core.nodes import is_module

__all__ = ["held_as", "nodes_below", "path_to"]


def nodes_below(root: Any) -> Iterator[tuple[str, Any]]:
    """A module and all modules and containers in it, each object once, with their dotted paths."""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, value = stack.pop()
        if is_module(value):
            if id(value) in seen:
                continue
            seen.add(id(value))
            names = type(value).__layout__.children
            held = [(name, getattr(value, name, None)) for name in names]
        else:
            constants, children = opened(value) or ((), ())
            keys = keys_of(type(value), constants, len(children)) if children else ()
            held = list(zip(keys, children, strict=True))
        yield path, value
        stack += [(f"{path}.{key}" if path else str(key), item) for key, item in reversed(held)]


def path_to(module: Any, root: Any) -> str | None:
    """The dotted path of a module below another, by identity."""
    return next((path for path, value in nodes_below(root) if value is module), None)


def held_as(module: Any) -> tuple[str, str] | None:
    """The variable of the nearest caller whose value holds a module, and the dotted path in it."""
    frame: Any = None if is_compiling() else sys._getframe(1)
    while frame is not None:
        for name, value in list(frame.f_locals.items()):
            if is_module(value):
                path = path_to(module, value)
                if path:
                    return name, path
        frame = frame.f_back
    return None
