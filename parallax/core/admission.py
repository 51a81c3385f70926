"""Checks the values of fields against their kinds, and freezes lists and dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parallax.core.containers import built, is_named_tuple, opened
from parallax.core.description import container_structure, leaves_at_places, spec_of
from parallax.core.entries import Static
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.kinds import Kind
from parallax.core.nodes import NODES, is_module
from parallax.core.structure import Structure

__all__ = ["annotation_of", "enter", "freeze"]


def enter(value: Any, kind: Kind, where: str, leaves: list[Any]) -> tuple[Any, Any]:
    """A value that its field allows, with its containers frozen, and its entry in the structure.

    Its leaves are appended, one for each place. ``where`` is the field in error messages, as
    ``Class.field``.
    """
    if kind.leaf is not None and isinstance(value, (Tensor, Lazy)):
        _check_leaf(value, kind, where)
        leaves.append(value)
        return value, kind.role()
    if value is None:
        if kind.optional or kind.constant:  # a hole, also where constants are allowed
            leaves.append(None)
            return None, kind.role()
    elif is_module(value):
        if kind.child:
            _check_finished(value, where)
            leaves += leaves_at_places(value)
            return value, spec_of(value)
    else:
        container = _as_container(value, kind, where)
        if container is not None:
            return _enter_container(container, kind, where, leaves)
    if kind.constant and not is_module(value):
        return value, Static(value, where)
    raise TypeError(_unexpected(value, kind, where))


def _check_leaf(value: Any, kind: Kind, where: str) -> None:
    if isinstance(value, Lazy):
        if kind.leaf is not Tensor and type(value) is not kind.leaf:
            assert kind.leaf is not None
            given, name = type(value).__name__, where.rsplit(".", 1)[-1]
            raise TypeError(
                f"{where} is annotated {kind.leaf.__name__} and was given a {given} declaration. "
                f"Write '{name}: {given}', or assign {kind.leaf.__name__}(shape, init)."
            )
        value.owner = value.owner or where


def _check_finished(value: Any, where: str) -> None:
    if value._spec is None:
        raise ValueError(
            f"{where} was given {type(value).__name__} while that is still being constructed: "
            f"a module cannot contain itself. Pass what the child needs as arguments instead."
        )


def _as_container(value: Any, kind: Kind, where: str) -> Any:
    """The value, lists and dicts frozen; ``None`` if it is not a container that the kind allows."""
    if type(value) in NODES:
        return value if kind.child else None
    if kind.items is not None and isinstance(value, (tuple, list)):
        if not kind.variadic and len(value) != len(kind.items):
            raise TypeError(f"{where} is a tuple of {len(kind.items)} items, got {len(value)}")
        return value if type(value) is tuple or is_named_tuple(type(value)) else tuple(value)
    if kind.mapping is not None and isinstance(value, Mapping):
        _check_keys(value, where)
        return FrozenDict(value)
    return None


def _enter_container(
    container: Any, kind: Kind, where: str, leaves: list[Any]
) -> tuple[Any, Structure]:
    cls: Any = type(container)
    found: Any = opened(container)
    constants, children = found
    names = constants[0] if cls is FrozenDict else range(len(children))
    pairs = [
        enter(child, kind.below(cls, k), f"{where}[{name!r}]", leaves)
        for k, (name, child) in enumerate(zip(names, children, strict=True))
    ]
    if any([new is not child for (new, _), child in zip(pairs, children, strict=True)]):
        container = built(cls, constants, [new for new, _ in pairs])
    return container, container_structure(cls, constants, tuple([entry for _, entry in pairs]))


def _check_keys(value: Mapping[Any, Any], where: str) -> None:
    """Raises if the dotted paths of the items would be ambiguous."""
    names = [str(key) for key in value]
    for name in names:
        if not name or "." in name or names.count(name) > 1:
            raise ValueError(
                f"{where} has the key {name!r}. Keys are parts of dotted paths: they must not be "
                f"empty, hold a dot, or read the same. Write another key, such as "
                f"{name.replace('.', '_') or '_'!r}."
            )


def freeze(value: Any, kind: Kind) -> Any:
    """A value of a child field with its containers frozen; as ``enter``, without checks."""
    if kind.items is not None and isinstance(value, (tuple, list)):
        items = [freeze(item, kind.below(tuple, k)) for k, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if kind.mapping is not None and isinstance(value, dict):
        return FrozenDict({key: freeze(item, kind.mapping) for key, item in value.items()})
    return value


def annotation_of(value: Any) -> str:
    """The annotation to write for a field that should hold ``value``."""
    if isinstance(value, Tensor):
        return "Parameter"
    if callable(value) and not isinstance(value, (type, torch.nn.Module)) and not is_module(value):
        return "Callable"
    return type(value).__name__


def _unexpected(value: Any, kind: Kind, where: str) -> str:
    name = where.rsplit(".", 1)[-1].split("[", maxsplit=1)[0]
    got = type(value).__name__
    if value is None:
        return f"{where} got None. Write '{name}: ... | None' to allow it."
    if kind.leaf is not None:
        role = kind.leaf.__name__
        return (
            f"{where} is a {role} and was given {got}. "
            f"Assign a tensor, or declare one: self.{name} = {role}(shape, init)"
        )
    if isinstance(value, torch.nn.Module):
        return (
            f"{where} was given {got}, a mutable torch.nn.Module. A tree holds immutable modules: "
            f"assign bridge.lift(...) of it, or a parallax.Module."
        )
    if kind.items is not None or kind.mapping is not None:
        held = "tuple or list" if kind.items is not None else "dict"
        return f"{where} holds a {held} and was given {got}. Assign a {held}, also for one item."
    if isinstance(value, (list, tuple)):
        return f"{where} holds one module and got a {got}. Write '{name}: tuple[Module, ...]'."
    if isinstance(value, Mapping):
        return f"{where} holds one module and got a {got}. Write '{name}: dict[str, Module]'."
    return (
        f"{where} is a child and was given {got}, which is no parallax.Module. Assign a module, "
        f"or write '{name}: Module | {annotation_of(value)}' to allow such a value too."
    )
