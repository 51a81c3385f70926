"""Which values a field admits: lists and dicts are frozen, and all is checked against its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parallax.core.constants import constant_key
from parallax.core.containers import is_named_tuple
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.kinds import Kind
from parallax.core.nodes import NODES, is_module

__all__ = ["annotation_of", "check", "freeze"]


def freeze(value: Any, kind: Kind, where: str) -> Any:
    """A value with its lists and dicts frozen, in the places that its kind has for containers.

    ``where`` is the field in error messages, as ``Class.field``.
    """
    if type(value) in NODES:
        return value
    if kind.items is not None and isinstance(value, (tuple, list)):
        if not kind.variadic and len(value) != len(kind.items):
            raise TypeError(f"{where} is a tuple of {len(kind.items)} items, got {len(value)}")
        if kind.deep:
            kinds = enumerate(kind.below(tuple, len(value)))
            items = [freeze(value[k], inner, f"{where}[{k}]") for k, inner in kinds]
            return type(value)(*items) if is_named_tuple(type(value)) else tuple(items)
        return value if is_named_tuple(type(value)) else tuple(value)
    if kind.mapping is not None and isinstance(value, Mapping):
        _check_keys(value, where)
        inner = kind.mapping
        return FrozenDict({k: freeze(v, inner, f"{where}[{k!r}]") for k, v in value.items()})
    return value


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


def check(value: Any, kind: Kind, where: str) -> None:
    """Raises if a kind does not allow a module, a hole, or a value in a leaf's place.

    A declaration learns what it is called.
    """
    if value is None:
        allowed = kind.optional or kind.constant  # a hole, also where constants are allowed
    elif is_module(value):
        allowed = kind.child
        if allowed and value._spec is None:
            raise ValueError(
                f"{where} was given {type(value).__name__} while that is still being constructed: "
                f"a module cannot contain itself. Pass what the child needs as arguments instead."
            )
    else:
        allowed = kind.leaf is not None and isinstance(value, (Tensor, Lazy))
        if allowed and isinstance(value, Lazy):
            _check_declaration(value, kind, where)
        elif kind.constant:
            constant_key(value, where)  # raises, and says which annotation to write
    if not allowed:
        raise TypeError(_unexpected(value, kind, where))


def _check_declaration(value: Lazy, kind: Kind, where: str) -> None:
    if kind.leaf is not Tensor and kind.leaf is not type(value):
        role, given = getattr(kind.leaf, "__name__", ""), type(value).__name__
        raise TypeError(
            f"{where} is annotated {role} and was given a {given} declaration. "
            f"Write '{where.rsplit('.', 1)[-1]}: {given}', or assign {role}(shape, init)."
        )
    value.owner = value.owner or where


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
