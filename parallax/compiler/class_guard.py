"""Whether the classes of modules are still what they were when a graph was made.

Dynamo makes modules anew while it traces, so it does not guard their methods. A change of a module
class (``Net.forward = ...``) increases a counter, and only then are these classes compared. A
change of a plain base class does not, nor does one of what a function holds (its defaults, its
closure). Of these, what a user wrote and a trace has run is compared at every call. Nor does dynamo
guard the methods of plain objects, and what it finds in the class of a class.
"""

from __future__ import annotations

import sys
from operator import is_
from types import CodeType
from typing import Any

from parallax.compiler.guards import is_library
from parallax.compiler.held import Held, functions_in
from parallax.core.nodes import CLASS_CLOCK
from parallax.core.structure import Structure

__all__ = ["ClassGuard"]

_OWN = ("__layout__", "__ready__", "_abc_impl", "__abstractmethods__")  # written by the metaclasses


class ClassGuard:
    """What the classes of the modules in ``tokens``, and those a trace has met, hold now."""

    def __init__(self, tokens: tuple[Any, ...]) -> None:
        self._time = CLASS_CLOCK.time
        structures = [token for token in tokens if type(token) is Structure]
        classes = {node.cls for structure in structures for node in structure.nodes()}
        bases = {base for cls in classes for base in cls.__mro__ if base is not object}
        self._held = {base: dict(vars(base)) for base in bases}
        self._plain = {base: self._held[base] for base in bases if _is_users(base)}
        self._functions = Held()
        self._codes: frozenset[CodeType] = frozenset()
        self._metaclasses: dict[type, dict[str, Any]] = {}

    def add(self, codes: frozenset[CodeType]) -> None:
        """Notes what the functions of the classes hold that a trace has run."""
        self._codes |= codes
        self._functions.add(functions_in(self._held, codes), codes)

    def watch(self, classes: set[type]) -> None:
        """Notes what other classes hold: of modules, and those of which a function has run."""
        for cls in classes:
            metaclass: type = type(cls)
            above = [base for base in metaclass.__mro__ if _is_users(base)]
            self._metaclasses = {base: dict(vars(base)) for base in above} | self._metaclasses
            module = _is_module(cls)
            bases = [base for base in cls.__mro__ if base is not object and base not in self._held]
            plain = [base for base in bases if _is_users(base)]
            functions = list(functions_in(bases if module else plain, self._codes))
            self._functions.add(functions, self._codes)
            if module:
                self._held |= {base: dict(vars(base)) for base in bases}
            if module or functions:
                self._plain = {base: dict(vars(base)) for base in plain} | self._plain

    def unchanged(self) -> bool:
        """Whether no class holds anything else than at the start."""
        time = CLASS_CLOCK.time
        if self._time != time:
            if not all(_same(vars(cls), held) for cls, held in self._held.items()):
                return False
            self._time = time
        for cls, held in self._plain.items():
            if not _same_methods(vars(cls), held):
                return False
        for cls, held in self._metaclasses.items():
            if not _same(vars(cls), held):
                return False
        return self._functions.unchanged()


def _is_module(cls: type) -> bool:
    """As ``hasattr(cls, "__layout__")``, which raises for what stands for a donated module."""
    return any(["__layout__" in vars(base) for base in cls.__mro__])


def _is_users(base: type) -> bool:
    name = base.__module__.partition(".")[0]
    plain = not _is_module(base) and not is_library(base)
    return plain and name not in sys.stdlib_module_names and name != "typing_extensions"


def _same(now: Any, held: dict[str, Any]) -> bool:
    names = held.keys() | now.keys()
    return all(now.get(name) is held.get(name) for name in names if name not in _OWN)


def _same_methods(now: Any, held: dict[str, Any]) -> bool:
    """As ``_same``, for what is found on instances as a method; dynamo guards plain values."""
    if len(now) == len(held) and all(map(is_, now.values(), held.values())):
        return True
    names = [name for name in held.keys() | now.keys() if name not in _OWN]
    changed = [(now.get(name), held.get(name)) for name in names]
    return not any(
        a is not b and (hasattr(type(a), "__get__") or hasattr(type(b), "__get__"))
        for a, b in changed
    )
