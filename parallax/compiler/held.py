"""What the functions of module classes hold, where dynamo does not look.

While dynamo traces, modules are made anew, and it knows no place for the methods of an object that
it made: it guards neither their code and defaults nor what they close over. Here the functions that
a trace has run are found from the classes, and what they hold is compared before every call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial, partialmethod
from operator import is_
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from parallax.compiler.guards import is_library
from parallax.core.nodes import is_module

__all__ = ["Held", "functions_in"]

_SCALARS = (int, float, complex, bool, str, bytes, type(None))
_EMPTY = object()


class Held:
    """The contents of functions, and of the mutable things that these contents are."""

    def __init__(self) -> None:
        # Most functions hold nothing but their code.
        self._bare: list[tuple[FunctionType, CodeType]] = []
        self._entries: list[tuple[Callable[[Any], tuple[Any, ...]], Any, tuple[Any, ...]]] = []
        self._known: set[int] = set()

    def add(self, functions: Iterable[FunctionType], codes: Iterable[CodeType]) -> None:
        """Notes what functions hold now; of classes, the attributes that code names."""
        names = frozenset([name for code in codes for name in code.co_names])
        for function in functions:
            self._add(function, names)

    def unchanged(self) -> bool:
        """Whether all is as it was noted."""
        for function, code in self._bare:
            if function.__code__ is not code or function.__defaults__ or function.__dict__:
                return False
        for read, holder, noted in self._entries:
            now = read(holder)
            if len(now) != len(noted) or not (all(map(is_, now, noted)) or _equal(now, noted)):
                return False
        return True

    def _add(self, value: Any, names: frozenset[str]) -> None:
        read = _reader(value, names)
        if read is None or id(value) in self._known:
            return
        self._known.add(id(value))  # the entry keeps the value alive
        contents = read(value)
        if read is _function and contents == (value.__code__, None):
            self._bare.append((value, value.__code__))
            return
        self._entries.append((read, value, contents))
        for inner in contents:
            self._add(inner, names)


def functions_in(classes: Iterable[type], codes: frozenset[CodeType]) -> Iterator[FunctionType]:
    """The functions of a user's classes, and those that these wrap, whose code is among codes."""
    seen: set[int] = set()
    left = [value for cls in classes if not is_library(cls) for value in vars(cls).values()]
    while left:
        value = left.pop()
        if id(value) in seen or value is None:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            if value.__code__ in codes and not is_library(value):
                yield value
            left += [cell for cell in _cells(value) if callable(cell)]
            left += vars(value).values()
        elif isinstance(value, (staticmethod, classmethod, MethodType)):
            left.append(value.__func__)
        elif isinstance(value, property):
            left += [value.fget, value.fset, value.fdel]
        elif isinstance(value, (partial, partialmethod, cached_property)):
            left.append(getattr(value, "func", None))
        elif hasattr(type(value), "__get__"):
            left += [part for part in getattr(value, "__dict__", {}).values() if callable(part)]


def _reader(value: Any, names: frozenset[str]) -> Callable[[Any], tuple[Any, ...]] | None:
    """What takes out of a value what it holds and may change; ``None`` if that is nothing."""
    if isinstance(value, (*_SCALARS, Tensor)) or is_module(value) or is_library(value):
        return None
    if isinstance(value, FunctionType):
        return _function
    if isinstance(value, dict):
        return _mapping
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple
    if isinstance(value, type):
        # Module classes are watched.
        return None if hasattr(value, "__layout__") else partial(_class_attributes, names=names)
    return None  # dynamo refuses other objects in these places


def _function(function: FunctionType) -> tuple[Any, ...]:
    named: Any = function.__kwdefaults__ or {}
    return (
        function.__code__, function.__defaults__, *named, *named.values(), *_cells(function),
        *vars(function).values(),
    )  # fmt: skip


def _cells(function: FunctionType) -> list[Any]:
    pairs = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [_contents(cell) for name, cell in pairs if name != "__class__"]


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _EMPTY


def _mapping(value: Any) -> tuple[Any, ...]:
    return (*value.keys(), *value.values())


def _class_attributes(cls: type, names: frozenset[str]) -> tuple[Any, ...]:
    spaces = [vars(base) for base in cls.__mro__ if base is not object and not is_library(base)]
    return tuple([part for space in spaces for name in names if name in space
                  for part in (name, space[name])])  # fmt: skip


def _equal(now: tuple[Any, ...], noted: tuple[Any, ...]) -> bool:
    """Whether contents are the same, where equal numbers and texts need not be one object."""
    return all([a is b or _same_scalar(a, b) for a, b in zip(now, noted, strict=True)])


def _same_scalar(a: Any, b: Any) -> bool:
    if type(a) is not type(b) or type(a) not in _SCALARS:
        return False
    return repr(a) == repr(b) if isinstance(a, (float, complex)) else bool(a == b)
