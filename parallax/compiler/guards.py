"""Which of dynamo's guards a compiled function needs.

A guard goes where a value can change between two calls. It is left out where every step to the
value is through something that is immutable by construction (a structure, a module, a tuple) or
that is checked elsewhere (a class of the arguments, by ``ClassGuard``), and so is the value itself.
So is what a library holds below a place where a guard compares which function, class or module of
the library is there.
What these hold of the user's own (a config object, a function and what it closes over, the lists
of a class) is guarded. What decides is who owns a value, not its name.
"""

from __future__ import annotations

import enum
import functools
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
    property, staticmethod, classmethod,
)  # fmt: skip
# Tables that lose only classes that nobody can reach, and what says "a leaf".
_TABLES = (NODES, *registries.TORCH_TABLES)
_LIBRARIES = ("torch", "optree", "parallax")
_EXAMPLES = "parallax.examples"  # to be played with
_WRAPS: Any = functools.wraps  # no other function of Python has defaults that traces read
# Rooms of Parallax whose modules have no state but those tables.
_STATELESS = ("parallax.core", "parallax.compiler", "parallax.tree")


class Guards:
    """Chooses among the guards of one flat function.

    Args:
        space: the globals of the flat function.
        local: what it closes over.
        given: the names in it that never change.
        is_loose: whether dynamo shall guard a leaf itself; asked after tracing.
        watch: is told the classes of all values that a trace has met, and those that it met.
    """

    def __init__(
        self, space: dict[str, Any], local: dict[str, Any], given: Sequence[str],
        is_loose: Callable[[int], bool], watch: Callable[[set[type]], None],
    ) -> None:  # fmt: skip
        self._roots = {"G": space, "L": local}
        self._given = frozenset(given)
        self._is_loose = is_loose
        self._watch = watch

    def keep(self, entries: Sequence[Any]) -> list[bool]:
        """For each guard of a trace, whether dynamo shall check it."""
        values = [entry.value for entry in entries if entry.has_value]
        self._watch(set(_classes_of(values)))
        chain = _Chain(self._roots, self._given)
        compared = [e for e in entries if e.has_value and e.guard_type in _IDENTITY]
        chain.pin(e.orig_guard.originating_source for e in compared if is_library(e.value))
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
        if entry.guard_type == "NOT_PRESENT_IN_GENERIC_DICT" and _is_frozen(entry.value):
            return False
        source = entry.orig_guard.originating_source
        identity = entry.guard_type in _IDENTITY
        if not (chain.leads_to(source) if identity else chain.is_fixed(source)):
            return True
        if dynamo.class_of_dict(source) is not None or identity:
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

    def __init__(self, roots: dict[str, Any], given: frozenset[str]) -> None:
        self._roots = roots
        self._given = given
        self._values: dict[Any, Any] = {}
        self._fixed: dict[Any, bool] = {}

    def pin(self, sources: Iterable[Any]) -> None:
        """Takes sources for fixed at which a guard compares the identity, unless it is left out."""
        self._fixed = dict.fromkeys(sources, True)

    def is_fixed(self, source: Any) -> bool:
        """Whether a source always leads to the same object, or the guards fail."""
        found = self._fixed.get(source)
        if found is None:
            found = self._fixed[source] = self.leads_to(source)
        return found

    def leads_to(self, source: Any) -> bool:
        """As ``is_fixed``, by the steps to it, so without a guard at the source itself."""
        try:
            return self._find_fixed(source)
        except (AttributeError, KeyError, IndexError, NameError, TypeError):
            return False  # dynamo has no expression for this place

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
        return dynamo.source_value(source, self._roots, self._values)


def _holds(owner: Any, value: Any, source: Any) -> bool:
    """Whether an owner that stays always holds this value."""
    if isinstance(owner, type):
        name = getattr(source, "member", None)
        return _is_watched(next((base for base in owner.__mro__ if name in vars(base)), owner))
    if isinstance(owner, ModuleType):
        if owner.__name__.startswith(_STATELESS) and is_library(owner):
            return True
        kept = isinstance(value, _CODE) or _is_table(value) or _is_number_of_ours(owner, value)
        return is_library(owner) and kept
    if isinstance(owner, FunctionType):
        default = dynamo.is_default(source)
        code = isinstance(value, _CODE) or default
        return (is_library(owner) and code) or (default and owner is _WRAPS)
    return _is_sealed(owner) or is_generated(owner)


def _is_number_of_ours(owner: ModuleType, value: Any) -> bool:
    """Whether a module of Parallax holds a number or text, which no function of ours binds anew."""
    ours = owner.__name__.startswith("parallax.") and not owner.__name__.startswith(_EXAMPLES)
    return ours and isinstance(value, (*_SCALARS, torch.dtype, tuple, frozenset))


def _is_frozen(value: Any) -> bool:
    """Whether an object of a class of ours refuses new attributes, as an optimizer does."""
    cls = type(value)
    ours = is_library(cls) and cls.__module__.startswith("parallax.")
    refusing: Any = cls.__setattr__
    return ours and refusing is not object.__setattr__


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
