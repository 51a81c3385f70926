"""The public names: what the ``__all__`` of parallax and of its rooms list."""

from __future__ import annotations

import doctest
import inspect
import types
from collections.abc import Iterator
from typing import Any

import parallax

__all__ = [
    "CONSTANTS",
    "DOCUMENTED",
    "MADE_BY_FUNCTIONS",
    "PUBLIC",
    "docstring",
    "examples_of",
    "is_exception",
    "public_methods",
]

# An alias of types and a string cannot hold a docstring; the text below them is in the reference.
CONSTANTS = {"parallax.core.registry.NAMESPACE", "parallax.random.Rng"}

# Classes that users get from a function and never construct: that function tells the arguments.
MADE_BY_FUNCTIONS = {
    "parallax.Module",  # by its subclasses, which have their own arguments
    "parallax.bridge.Lifted",
    "parallax.bridge.Lowered",
    "parallax.optim.Accumulated",
    "parallax.optim.Chained",
    "parallax.optim.Optimizer",  # by its subclasses
    "parallax.optim.Skipped",
    "parallax.optim.Splits",
    "parallax.optim.schedules.Schedule",  # by its subclasses
    "parallax.tree.Selection",
    "parallax.tree.TreeSpec",
}


def rooms() -> dict[str, types.ModuleType]:
    """The public modules by their names; a module in an ``__all__`` is one, too."""
    found: dict[str, types.ModuleType] = {}
    todo = [parallax]
    while todo:
        room = todo.pop()
        found[room.__name__] = room
        todo += [m for name in room.__all__ if inspect.ismodule(m := getattr(room, name))]
    return found


def public() -> dict[str, Any]:
    """Every public object by its name."""
    return {
        f"{name}.{short}": getattr(room, short)
        for name, room in rooms().items()
        for short in room.__all__
        if not inspect.ismodule(getattr(room, short))
    }


PUBLIC = public()
DOCUMENTED = {name: value for name, value in PUBLIC.items() if name not in CONSTANTS}


def docstring(value: Any) -> str:
    return inspect.getdoc(value) or ""


def examples_of(text: str) -> list[str]:
    """The programs in a docstring, statement by statement."""
    return [example.source for example in doctest.DocTestParser().get_examples(text)]


def is_exception(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseException)


def public_methods(cls: Any) -> Iterator[tuple[str, types.FunctionType]]:
    """The public methods of a class by their names, properties and those of its bases included.

    Those that come from outside of the package are left out, such as the methods of a dict.
    """
    for short in dir(cls):
        found: Any = inspect.getattr_static(cls, short)
        if isinstance(found, property):
            found = found.fget
        elif isinstance(found, (classmethod, staticmethod)):
            found = found.__func__
        public = not short.startswith("_") and inspect.isfunction(found)
        if public and found.__module__.startswith("parallax."):
            yield short, found
