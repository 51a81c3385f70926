"""The structure, the leaves and the note of a module, however it was made.

A module gets them at the end of its construction. A module that raw optree or a trace made gets
them when it is first taken apart.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax._compat.opaque import real
from parallax.core.constants import constant_key
from parallax.core.containers import opened
from parallax.core.entries import (
    BUFFER,
    PARAMETER,
    PLAIN,
    SLOT,
    Leaf,
    Local,
    Note,
    Static,
    local_of,
)
from parallax.core.fields import Lazy, Parameter
from parallax.core.kinds import Kind
from parallax.core.layout import Layout
from parallax.core.nodes import is_module
from parallax.core.structure import Structure, structure_of
from parallax.core.ties import find_ties

__all__ = [
    "container_structure",
    "describe",
    "gather",
    "leaves_of",
    "local_part",
    "note_of",
    "role_of",
    "spec_of",
    "structure_with",
]

_ROLES: dict[type, Leaf] = {Parameter: PARAMETER, Tensor: SLOT}
_set = object.__setattr__


def spec_of(module: Any) -> Structure:
    """The structure of a module; one that raw optree or a trace made is described here first."""
    structure = module._spec
    if type(structure) is not Structure:
        return describe(module)
    return structure.itself() if is_compiling() else structure  # type: ignore[attr-defined]  # of every constant of a trace


def leaves_of(module: Any) -> tuple[Any, ...]:
    """The unique leaves of a module, collected once and kept on it."""
    try:
        return module._leaves  # type: ignore[no-any-return]  # a slot of the module
    except AttributeError:
        structure = spec_of(module)
    if is_compiling():  # nothing is written to what was there before
        return structure.traced("collect")(module)  # type: ignore[no-any-return]  # generated
    leaves = structure.collect(module)
    _set(module, "_leaves", leaves)
    return leaves


def note_of(module: Any) -> Note:
    """The note of a module, however it was made."""
    structure = module._spec
    if type(structure) is not Structure:
        return structure or PLAIN
    return structure.itself().note if is_compiling() else structure.note  # type: ignore[attr-defined]  # as above


def describe(module: Any) -> Structure:
    """Computes the structure of a module that raw optree or a trace made, and keeps it there."""
    if module._spec is None:
        raise RuntimeError(
            f"{type(module).__name__} is still being constructed: it is a tree from the end of "
            f"__init__ on. Work on the fields, or on the finished module."
        )
    layout: Any = type(module).__layout__.itself()
    leaves: list[Any] = []
    children = []
    for name in layout.children:
        value = getattr(module, name)
        entry = _describe(value, layout.kinds[name], name)
        children.append(entry)
        gather(value, entry, leaves)
    unique, expand = find_ties(leaves)
    constants = tuple([getattr(module, name) for name in layout.constants])
    structure = structure_with(layout, constants, tuple(children), expand, tuple(note_of(module)))
    if not is_compiling():
        _set(module, "_spec", structure)
        _set(module, "_leaves", unique)
    return structure


def _describe(value: Any, kind: Kind, where: str) -> Any:
    """As ``enter`` for values that were checked before: any value in a leaf's place is a leaf."""
    if is_module(value):
        return spec_of(value)
    found = opened(value) if kind.holds(type(value)) else None
    if found is not None:
        constants, children = found
        entries = [
            _describe(child, kind.below(type(value), k), where) for k, child in enumerate(children)
        ]
        return container_structure(type(value), constants, tuple(entries))
    if kind.constant and value is not None and not isinstance(value, (Tensor, Lazy)):
        return Static(value, where)
    return role_of(kind)


@real
def role_of(kind: Kind) -> Leaf:
    """The role of a leaf in the place of a value of this kind."""
    return SLOT if kind.leaf is None else _ROLES.get(kind.leaf, BUFFER)


def local_part(module: Any) -> Local:
    """The local part of a module that has no structure yet."""
    layout: Layout = type(module).__layout__.itself()
    constants = tuple([getattr(module, name) for name in layout.constants])
    return layout.local(constants, tuple(note_of(module)))


def gather(value: Any, entry: Any, leaves: list[Any]) -> None:
    """Appends the leaves of a child, one per place."""
    if type(entry) is not Structure:
        if type(entry) is not Static:
            leaves.append(value)
    elif is_module(value):
        unique = leaves_of(value)
        expand = entry.expand
        leaves.extend(unique if expand is None else [unique[k] for k in expand])
    else:
        leaves.extend(entry.traced("collect")(value) if is_compiling() else entry.collect(value))


@real
def structure_with(
    layout: Layout,
    constants: tuple[Any, ...],
    children: tuple[Any, ...],
    expand: tuple[int, ...] | None,
    note: tuple[Any, ...],
) -> Structure:
    """The structure of a module with these constants and entries."""
    return structure_of(layout.local(constants, note), children, expand)


@real
def container_structure(
    cls: type, constants: tuple[Any, ...], entries: tuple[Any, ...]
) -> Structure:
    """The structure of a container with these constants and entries."""
    key = tuple(constant_key(value, cls.__name__) for value in constants)
    return structure_of(local_of(cls, constants, key), entries)
