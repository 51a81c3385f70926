"""A blueprint: everything about one ``nn.Module`` except its tensors and the modules below it.

It is the constant that a lifted module holds: the class, the plain attributes and the hooks. Two
modules that were built alike have equal blueprints, so their trees fit together.

Attributes may point at tensors or modules of the same model: a list of weights, a bound method, a
reference to a sibling. Such a pointer is kept as a ``Ref``, a relative path; a blueprint
holds no weights and leads to no mutable module.
"""

from __future__ import annotations

import functools
import itertools
import types
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from parallax.bridge.alike import same

__all__ = ["Blueprint", "Bound", "Ref", "attributes_of", "defaults", "resolved"]

Path = tuple[str, ...]

_SEPARATE = frozenset({"_parameters", "_buffers", "_modules", "training"})
_ATOMS = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device}
    | {torch.Size, types.FunctionType, types.BuiltinFunctionType}
)
_HASHED = (int, bool, str, float)
_DEFAULTS: dict[str, Any] = {k: v for k, v in vars(nn.Module()).items() if k not in _SEPARATE}
_EMPTY = frozenset(name for name, value in _DEFAULTS.items() if not value)


class Ref:
    """A tensor or module of the same model, by its path from the module that points at it."""

    __slots__ = ("down", "up", "weak")

    def __init__(self, up: int, down: Path, weak: bool = False) -> None:
        self.up = up  # how many levels to climb first
        self.down = down
        self.weak = weak

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.up, self.down, self.weak

    def __repr__(self) -> str:
        return f"Ref({'^' * self.up}{'.'.join(self.down)})"


class Bound:
    """A method bound to a module of the same model."""

    __slots__ = ("function", "to")

    def __init__(self, function: Callable[..., Any], to: Ref) -> None:
        self.function = function
        self.to = to

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and (self.function, self.to) == (other.function, other.to)

    def __hash__(self) -> int:
        return hash((self.function, self.to))


_numbers = itertools.count()
BY_NUMBER: weakref.WeakValueDictionary[int, Blueprint] = weakref.WeakValueDictionary()
"""Blueprints by number: a number is what compiled code can look at without a guard on the rest."""


class Blueprint:
    """What a lifted module was, apart from its tensors and children.

    Attributes:
        cls: the class of the ``nn.Module``.
        attributes: its plain attributes, without those that every ``nn.Module`` begins with.
        number: unique in this process.
    """

    __slots__ = ("__weakref__", "_hash", "attributes", "cls", "number")

    def __init__(self, cls: type[nn.Module], attributes: dict[str, Any]) -> None:
        self.cls = cls
        self.attributes = attributes
        self.number = next(_numbers)
        plain = [(k, v) for k, v in attributes.items() if type(v) in _HASHED]
        self._hash = hash((_unparametrized(cls), len(attributes), *plain))
        BY_NUMBER[self.number] = self

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            type(other) is Blueprint
            and self._hash == other._hash
            and _unparametrized(self.cls) is _unparametrized(other.cls)
            and self.attributes.keys() == other.attributes.keys()
            and all(
                same(value, other.attributes[name])
                if name not in _EMPTY
                else _same_hooks(name, value, other.attributes[name])
                for name, value in self.attributes.items()
            )
        )

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Blueprint({self.cls.__name__})"

    def __reduce__(self) -> Any:
        return Blueprint, (self.cls, self.attributes)


def _unparametrized(cls: type[nn.Module]) -> type:
    """The class as written: ``parametrize`` makes a new one for every module it touches."""
    injected = cls.__name__.startswith("Parametrized") and cls.__module__ == parametrize.__name__
    return cls.__bases__[0] if injected else cls


def defaults() -> dict[str, Any]:
    """The attributes that every ``nn.Module`` begins with, fresh; without tensors and children."""
    return {
        name: type(value)() if isinstance(value, (dict, set)) else value
        for name, value in _DEFAULTS.items()
    }


def attributes_of(module: nn.Module, path: Path, known: dict[int, Path]) -> dict[str, Any]:
    """The plain attributes of a module, with a ``Ref`` for each pointer into the model.

    Args:
        module: the module.
        path: where it stands in the model.
        known: the path of every tensor and module of the model, by ``id``.

    Returns:
        A new dict; the containers in it are new, too.
    """
    found = {}
    for name, value in vars(module).items():
        if name in _SEPARATE or (name in _EMPTY and not value):
            continue
        found[name] = value if type(value) in _ATOMS else _detached(value, path, known)
    return found


def _detached(value: Any, path: Path, known: dict[int, Path]) -> Any:
    """A value without any pointer into the model."""
    cls = type(value)
    if cls in _ATOMS:
        return value
    if isinstance(value, (nn.Module, Tensor)) and id(value) in known:
        return _ref(path, known[id(value)])
    if isinstance(value, Tensor):
        return value.detach() if value.grad_fn is not None else value
    if cls is weakref.ReferenceType:
        target = value()
        there = None if target is None else known.get(id(target))
        return value if there is None else _ref(path, there, weak=True)
    if cls is types.MethodType:
        value = cast(types.MethodType, value)
        there = known.get(id(value.__self__))
        return value if there is None else Bound(value.__func__, _ref(path, there))
    if cls is functools.partial:
        value = cast(functools.partial[Any], value)
        args = [_detached(arg, path, known) for arg in value.args]
        keywords = {k: _detached(v, path, known) for k, v in value.keywords.items()}
        return functools.partial(_detached(value.func, path, known), *args, **keywords)
    return _rebuilt(value, lambda item: _detached(item, path, known))


def _rebuilt(value: Any, each: Callable[[Any], Any]) -> Any:
    """A container with ``each`` of its items; what is no container is itself."""
    cls = type(value)
    if cls in (list, tuple, set, frozenset):
        return cls([each(item) for item in value])
    if cls in (dict, OrderedDict):
        return cls((key, each(item)) for key, item in value.items())
    if cls is defaultdict:
        return defaultdict(value.default_factory, {k: each(v) for k, v in value.items()})
    return value


def _ref(start: Path, target: Path, weak: bool = False) -> Ref:
    shared = 0
    for one, two in zip(start, target, strict=False):
        if one != two:
            break
        shared += 1
    return Ref(len(start) - shared, target[shared:], weak)


def resolved(value: Any, follow: Callable[[Ref], Any]) -> Any:
    """A value with what each ``Ref`` in it points at; containers are new."""
    if type(value) is Ref:
        return follow(value)
    if type(value) is Bound:
        return types.MethodType(value.function, follow(value.to))
    if type(value) is functools.partial:
        args = [resolved(arg, follow) for arg in value.args]
        keywords = {k: resolved(v, follow) for k, v in value.keywords.items()}
        return functools.partial(resolved(value.func, follow), *args, **keywords)
    return _rebuilt(value, lambda item: resolved(item, follow))


def _same_hooks(name: str, one: Any, two: Any) -> bool:
    """Whether two tables of hooks are alike: their keys are numbers, given out one by one."""
    if "state_dict" in name:  # for the original's own loading and saving; no call runs them
        return True
    return same(list(one.values()), list(two.values())) if isinstance(one, dict) else one == two
