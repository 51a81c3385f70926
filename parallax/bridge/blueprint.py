"""A blueprint: everything about one ``nn.Module`` except its tensors and the modules below it.

It is the constant that a lifted module holds: the class, the plain attributes and the hooks. Two
modules that were built alike have equal blueprints, so their trees fit together.

A blueprint holds no weights and leads to no mutable module of the model: see ``pointers``. Objects
of classes that Python does not come with are the original's own, such as a configuration.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from parallax.bridge.alike import same
from parallax.bridge.pointers import ATOMS, Detaching, Ref, changeable, points_at_tensors, resolved

__all__ = ["BY_NUMBER", "STRUCTURE", "Blueprint", "attributes_of", "defaults", "stand_for_one"]

Path = tuple[str, ...]

STRUCTURE = "_parallax_structure"
"""The attribute of a lowered module that says what it stands for."""

# A compiled call is one of the original itself; it goes, as it does when a module is pickled.
# So does what a lowered module stands for, when it is lifted again.
_SEPARATE = frozenset(
    {"_parameters", "_buffers", "_modules", "training", "_compiled_call_impl", STRUCTURE}
)
_HASHED = (int, bool, str, float)
_DEFAULTS: dict[str, Any] = {k: v for k, v in vars(nn.Module()).items() if k not in _SEPARATE}
_EMPTY = frozenset(name for name, value in _DEFAULTS.items() if not value)


_numbers = itertools.count()
BY_NUMBER: weakref.WeakValueDictionary[str, Blueprint] = weakref.WeakValueDictionary()
"""Blueprints by number: that is what compiled code can look at without a guard on the rest."""


class Blueprint:
    """What a lifted module was, apart from its tensors and children.

    Attributes:
        cls: the class of the ``nn.Module``.
        attributes: its plain attributes, without those that every ``nn.Module`` begins with.
        number: unique in this process; a string, for dynamo takes an int that varies for a symbol.
        objects: which objects of the original's it holds: those that can change.
        linked: the attributes that point at tensors of the model.
        twin: where the same ``nn.Module`` stands first, if this is another place of it.
    """

    __slots__ = (
        "__weakref__",
        "_hash",
        "attributes",
        "cls",
        "linked",
        "number",
        "objects",
        "twin",
    )

    def __init__(
        self, cls: type[nn.Module], attributes: dict[str, Any], twin: Ref | None = None
    ) -> None:
        self.cls = cls
        self.attributes = attributes
        self.twin = twin
        self.number = str(next(_numbers))
        self.objects = tuple([id(item) for item in changeable(attributes)])
        items = [(k, v) for k, v in attributes.items() if type(v) not in ATOMS]
        self.linked = tuple([name for name, value in items if points_at_tensors(value)])
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
        return Blueprint, (self.cls, self.attributes, self.twin)


def stand_for_one(one: Blueprint, at: Path, two: Blueprint, there: Path, depth: int) -> bool:
    """Whether blueprints can be those of one module that stands in two places.

    Args:
        one: the blueprint in one place.
        at: the path of that place.
        two: the blueprint in the other.
        there: the path of that.
        depth: how far both are below the topmost module that stands in two places: pointers that
            do not leave it are alike if they lead the same way, others if they lead to one place.
    """

    def attributes(blueprint: Blueprint, path: Path) -> Any:
        return resolved(
            blueprint.attributes,
            lambda ref: ref if ref.up <= depth else (*path[: len(path) - ref.up], *ref.down),
        )

    return one.cls is two.cls and same(attributes(one, at), attributes(two, there))


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


def attributes_of(module: nn.Module, path: Path, detaching: Detaching) -> dict[str, Any]:
    """The plain attributes of a module, with a ``Ref`` for each pointer into the model.

    Args:
        module: the module.
        path: where it stands in the model.
        detaching: of that model.

    Returns:
        A new dict; the containers in it are new, too.
    """
    return {
        name: value if type(value) in ATOMS else detaching.detached(value, path)
        for name, value in vars(module).items()
        if not (name in _SEPARATE or (name in _EMPTY and not value))
    }


def _same_hooks(name: str, one: Any, two: Any) -> bool:
    """Whether two tables of hooks are alike: their keys are numbers, given out one by one."""
    if "state_dict" in name:  # for the original's own loading and saving; no call runs them
        return True
    return same(list(one.values()), list(two.values())) if isinstance(one, dict) else one == two
