"""Whether the classes of modules are still what they were when a graph was made.

Dynamo makes modules anew while it traces, so it does not guard their methods. A change of a module
class (``Net.forward = ...``) increases a counter, and only then are these classes compared. A
change of a plain base class does not, nor does one of what a function holds (its defaults, its
closure). Of these, what a user wrote and a trace has run is compared at every call.
"""

from __future__ import annotations

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
    """What the classes of the modules in ``tokens`` hold now."""

    def __init__(self, tokens: tuple[Any, ...]) -> None:
        self._time = CLASS_CLOCK.time
        structures = [token for token in tokens if type(token) is Structure]
        classes = {node.cls for structure in structures for node in structure.nodes()}
        bases = {base for cls in classes for base in cls.__mro__ if base is not object}
        self._held = {base: dict(vars(base)) for base in bases}
        self._plain = [base for base in bases if _is_users(base)]
        self._functions = Held()

    def add(self, codes: frozenset[CodeType]) -> None:
        """Notes what the functions of the classes hold that a trace has run."""
        self._functions.add(functions_in(self._held, codes), codes)

    def unchanged(self) -> bool:
        """Whether no class holds anything else than at the start."""
        time = CLASS_CLOCK.time
        if self._time != time:
            if not all(_same(vars(cls), held) for cls, held in self._held.items()):
                return False
            self._time = time
        for base in self._plain:
            if not _same_methods(vars(base), self._held[base]):
                return False
        return self._functions.unchanged()


def _is_users(base: type) -> bool:
    plain = not hasattr(base, "__layout__") and not is_library(base)
    return plain and base.__module__ not in ("abc", "builtins", "typing", "typing_extensions")


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
