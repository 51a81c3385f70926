"""Whether the classes of modules are still what they were when a graph was made.

Dynamo makes modules anew while it traces, so it does not guard which methods their classes have. A
change of a module class (``Net.forward = ...``) increases a counter, and only then are these
classes compared. A change of a plain base class does not, so that those of a user are compared at
every call. Nor does dynamo guard the methods of plain objects, and what it finds in the class of a
class. What a method holds (its defaults, its closure) it does guard.
"""

from __future__ import annotations

import sys
from operator import is_
from typing import Any

from parallax.compiler.guards import is_library
from parallax.core.nodes import CLASS_CLOCK
from parallax.core.structure import Structure

__all__ = ["ClassGuard"]

_OWN = ("__layout__", "__ready__", "_abc_impl", "__abstractmethods__")  # written by the metaclasses


class _Body:
    """What a class held, and a view of what it holds now."""

    __slots__ = ("bases", "cls", "names", "now", "then", "values")

    def __init__(self, cls: type) -> None:
        self.cls = cls
        self.now = vars(cls)
        self.then = dict(self.now)
        self.names, self.values = tuple(self.then), tuple(self.then.values())
        self.bases = cls.__bases__

    def is_same(self) -> bool:
        """Whether the class holds the very same."""
        if self.is_untouched():
            return True
        return self.cls.__bases__ == self.bases and not self._changed()

    def has_same_methods(self) -> bool:
        """As ``is_same``, for what is found on instances; dynamo guards plain values."""
        if self.is_untouched():
            return True
        then, now = self.then, self.now
        return self.cls.__bases__ == self.bases and not any(
            _is_method(now.get(name)) or _is_method(then.get(name)) or self._hides(name)
            for name in self._changed()
        )

    def is_untouched(self) -> bool:
        """As ``is_same``, of which it is the quick part: false in doubt."""
        now = self.now
        return (
            tuple(now) == self.names
            and all(map(is_, now.values(), self.values))
            and self.cls.__bases__ == self.bases
        )

    def _changed(self) -> list[str]:
        then, now = self.then, self.now
        names = then.keys() | now.keys()
        return [name for name in names if now.get(name) is not then.get(name) and name not in _OWN]

    def _hides(self, name: str) -> bool:
        """Whether a name came into the class, in front of what bases or ``__getattr__`` gave.

        Python itself writes names with underscores into classes, ``__annotations__`` for example.
        """
        if name in self.then:
            return False
        found = [vars(base)[name] for base in self.cls.__mro__[1:] if name in vars(base)]
        return not name.startswith("__") or any(map(_is_method, found))


def _is_method(value: Any) -> bool:
    return hasattr(type(value), "__get__")


class ClassGuard:
    """What the classes of the modules in ``tokens``, and those a trace has met, hold now."""

    def __init__(self, tokens: tuple[Any, ...]) -> None:
        self._time = CLASS_CLOCK.time
        structures = [token for token in tokens if type(token) is Structure]
        classes = {node.cls for structure in structures for node in structure.nodes()}
        bases = {base for cls in classes for base in cls.__mro__ if base is not object}
        self._held = {base: _Body(base) for base in bases}
        self._plain = {base: self._held[base] for base in bases if _is_users(base)}
        self._metaclasses: dict[type, _Body] = {}

    def watch(self, classes: set[type]) -> None:
        """Notes what other classes hold: of modules, and those of which a function has run."""
        for cls in classes:
            metaclass: type = type(cls)
            above = [base for base in metaclass.__mro__ if _is_users(base)]
            self._metaclasses = {base: _Body(base) for base in above} | self._metaclasses
            bases = [base for base in cls.__mro__ if base is not object and base not in self._held]
            plain = [base for base in bases if _is_users(base)]
            if _is_module(cls):
                self._held |= {base: _Body(base) for base in bases}
            self._plain = {base: _Body(base) for base in plain} | self._plain

    def unchanged(self) -> bool:
        """Whether no class holds anything else than at the start."""
        time = CLASS_CLOCK.time
        if self._time != time:
            if not all([body.is_same() for body in self._held.values()]):
                return False
            self._time = time
        for body in self._plain.values():
            if not body.has_same_methods():
                return False
        return all([body.is_same() for body in self._metaclasses.values()])


def _is_module(cls: type) -> bool:
    """As ``hasattr(cls, "__layout__")``, which raises for what stands for a donated module."""
    return any(["__layout__" in vars(base) for base in cls.__mro__])


def _is_users(base: type) -> bool:
    home: Any = base.__module__
    name = home.partition(".")[0] if isinstance(home, str) else ""
    plain = not _is_module(base) and not is_library(base)
    return plain and name not in sys.stdlib_module_names and name != "typing_extensions"
