"""Which of dynamo's guards a compiled function needs.

A guard goes where a value can change between two calls. It is left out where every step to the
value is through something that is immutable by construction (a structure, a module, a tuple) or
that is checked elsewhere (a class of the arguments, by ``ClassGuard``), and so is the value itself.
What these hold of the user's own (a config object, a function and what it closes over, the lists
of a class) is guarded. What decides is who owns a value, not its name.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import torch
from typing_extensions import TypeIs

from parallax._compat import dynamo, registries
from parallax.compiler.outside import LEAF
from parallax.core.code import is_generated
from parallax.core.entries import Leaf, Local, Static
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.kinds import Kind
from parallax.core.layout import Layout
from parallax.core.nodes import NODES
from parallax.core.structure import Structure

__all__ = ["Guards", "is_library"]

_LEAF_GUARDS = ("TENSOR_MATCH", "TYPE_MATCH", "SEQUENCE_LENGTH")
_IDENTITY = ("ID_MATCH", "CLASS_MATCH", "MODULE_MATCH", "BUILTIN_MATCH", "NONE_MATCH")
_CODE = (FunctionType, BuiltinFunctionType, ModuleType, type)
_SCALARS = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), range, slice)
_SEALED = (
    *_SCALARS, torch.dtype, torch.device, torch.Size, torch.layout,
    tuple, frozenset, FrozenDict, Structure, Local, Static, Leaf, Layout, Kind, Lazy,
)  # fmt: skip
# Tables that lose only classes that nobody can reach, and what says "a leaf".
_TABLES = (NODES, *registries.TORCH_TABLES)
_LIBRARIES = ("torch", "optree", "parallax")
# Rooms of Parallax whose modules have no state but those tables.
_STATELESS = ("parallax.core", "parallax.compiler", "parallax.tree")


class Guards:
    """Chooses among the guards of one flat function.

    Args:
        space: the globals of the flat function.
        given: the names in it that never change.
        is_loose: whether dynamo shall guard a leaf itself; asked after tracing.
        watch: is told the classes of all values that a trace has met, and those that it met.
    """

    def __init__(
        self, space: dict[str, Any], given: Sequence[str], is_loose: Callable[[int], bool],
        watch: Callable[[set[type]], None],
    ) -> None:  # fmt: skip
        self._space = space
        self._given = frozenset(given)
        self._is_loose = is_loose
        self._watch = watch

    def keep(self, entries: Sequence[Any]) -> list[bool]:
        """For each guard of a trace, whether dynamo shall check it."""
        values = [entry.value for entry in entries if entry.has_value]
        self._watch(set(_classes_of(values)))
        chain = _Chain(self._space, self._given)
        return [self._keeps(entry, chain) for entry in entries]

    def _keeps(self, entry: Any, chain: _Chain) -> bool:
        leaf = LEAF.fullmatch(entry.orig_guard.name)
        if leaf is not None:
            checked = entry.guard_type in _LEAF_GUARDS
            return not checked or (leaf[1] is not None and self._is_loose(int(leaf[1])))
        if entry.guard_type == "FUNCTORCH_STACK_MATCH":
            return False  # no graph is run under a transform
        if not entry.has_value:
            return True
        source = entry.orig_guard.originating_source
        if not chain.is_fixed(source):
            return True
        if dynamo.class_of_dict(source) is not None or entry.guard_type in _IDENTITY:
            return False
        return not (_is_sealed(entry.value) or chain.is_part_of_library(source))


def _classes_of(values: Iterable[Any]) -> Iterator[type]:
    """The classes of some values, those that are classes, and those that functions close over."""
    for value in values:
        yield value if _is_class(value) else type(value)
        cells = value.__closure__ if type(value) is FunctionType else None
        for cell in cells or ():
            with suppress(ValueError):  # not filled yet
                if _is_class(cell.cell_contents):
                    yield cell.cell_contents


def _is_class(value: Any) -> TypeIs[type]:
    """As ``isinstance(value, type)``, which believes what an object says in ``__class__``."""
    return issubclass(type(value), type)


class _Chain:
    """The steps to the values of one trace."""

    def __init__(self, space: dict[str, Any], given: frozenset[str]) -> None:
        self._space = space
        self._given = given
        self._values: dict[Any, Any] = {}
        self._fixed: dict[Any, bool] = {}

    def is_fixed(self, source: Any) -> bool:
        """Whether a source always leads to the same object."""
        found = self._fixed.get(source)
        if found is None:
            try:
                found = self._find_fixed(source)
            except (AttributeError, KeyError, IndexError, NameError, TypeError):
                found = False  # dynamo has no expression for this place
            self._fixed[source] = found
        return found

    def is_part_of_library(self, source: Any) -> bool:
        """Whether a source leads to a function, class or module that a library holds as its own."""
        base = getattr(source, "base", None)
        return (
            base is not None
            and isinstance(self._value(source), _CODE)
            and is_library(self._value(base), (ModuleType, type))
        )

    def _find_fixed(self, source: Any) -> bool:
        base = getattr(source, "base", None)
        if base is None:
            value, name = self._value(source), dynamo.global_name(source)
            return name in self._given or is_library(value, (ModuleType,)) or is_generated(value)
        cls = dynamo.class_of_dict(base)  # the dict is a copy
        if cls is not None:
            return self.is_fixed(cls) and _is_watched(self._value(cls))
        return self.is_fixed(base) and _holds(self._value(base), self._value(source), source)

    def _value(self, source: Any) -> Any:
        return dynamo.source_value(source, self._space, self._values)


def _holds(owner: Any, value: Any, source: Any) -> bool:
    """Whether an owner that stays always holds this value."""
    if isinstance(owner, type):
        name = getattr(source, "member", None)
        return _is_watched(next((base for base in owner.__mro__ if name in vars(base)), owner))
    if isinstance(owner, ModuleType):
        if owner.__name__.startswith(_STATELESS) and is_library(owner):
            return True
        return is_library(owner) and (isinstance(value, _CODE) or _is_table(value))
    if isinstance(owner, FunctionType):
        code = isinstance(value, _CODE) or dynamo.is_default(source)
        return is_library(owner) and code
    return _is_sealed(owner)


def _is_watched(cls: type) -> bool:
    """Whether what a class holds stays; ``ClassGuard`` compares the classes of modules."""
    return hasattr(cls, "__layout__") or is_library(cls)


def _is_sealed(value: Any) -> bool:
    """Whether a value is immutable by construction, or checked elsewhere."""
    cls = type(value)
    if _is_class(value):
        return _is_watched(value)
    if issubclass(cls, _CODE):
        return isinstance(value, BuiltinFunctionType) or is_library(value)
    if issubclass(cls, enum.Enum):
        return False
    if cls is MappingProxyType:  # the attributes of a class, which is watched if it stays
        return True
    plain = issubclass(cls, _SEALED) and not hasattr(value, "__dict__")
    ours = cls in _SEALED or hasattr(cls, "__layout__")
    return plain or ours or is_generated(value) or _is_table(value)


def _is_table(value: Any) -> bool:
    return any(value is table for table in _TABLES)


def is_library(value: Any, kinds: tuple[type, ...] = _CODE) -> bool:
    """Whether a function, class or module is what torch, optree or Parallax are made of."""
    cls: type = type(value)
    if not issubclass(cls, kinds):
        return False
    if issubclass(cls, ModuleType):
        name, space = value.__name__, vars(value)
    elif issubclass(cls, FunctionType):
        name, space = value.__globals__.get("__name__"), value.__globals__
    else:
        name, space = getattr(value, "__module__", None), None
    if not isinstance(name, str) or name.partition(".")[0] not in _LIBRARIES:
        return False
    module = sys.modules.get(name)
    return module is not None and (space is None or vars(module) is space)
