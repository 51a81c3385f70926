"""The structure, the leaves and the note of a module, however it was made.

A module gets them at the end of its construction. A module that raw optree or a trace made gets
them when it is first taken apart.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax._compat.opaque import real
from parallax.core.admission import check
from parallax.core.constants import constant_key
from parallax.core.containers import keys_of, opened
from parallax.core.entries import PLAIN, Local, Note, Static, local_of
from parallax.core.fields import Lazy
from parallax.core.kinds import Kind
from parallax.core.layout import Layout
from parallax.core.nodes import NODES, is_module
from parallax.core.structure import Structure, structure_of
from parallax.core.ties import find_ties

__all__ = [
    "describe",
    "leaves_of",
    "local_part",
    "modules_in",
    "note_of",
    "spec_of",
    "spread",
]

_set = object.__setattr__


def spec_of(module: Any) -> Structure:
    """The structure of a module; one that raw optree or a trace made is described here first."""
    structure = module._spec
    if type(structure) is not Structure:
        if structure is None:
            raise RuntimeError(
                f"{type(module).__name__} is still being constructed: it is a tree from the end of "
                f"__init__ on. Work on the fields, or on the finished module."
            )
        return describe(type(module).__layout__.itself(), module)
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


def modules_in(module: Any) -> tuple[Any, ...]:
    """A module and all below it, in preorder; one in several places comes as often."""
    return spec_of(module).shape.code("modules")(module)  # type: ignore[no-any-return]  # generated


def note_of(module: Any) -> Note:
    """The note of a module, however it was made."""
    structure = module._spec
    if type(structure) is not Structure:
        return structure or PLAIN
    return structure.itself().note if is_compiling() else structure.note  # type: ignore[attr-defined]  # as above


def describe(
    layout: Layout, module: Any, checked: Container[str] = (), old: Any = None
) -> Structure:
    """Computes the structure and the leaves of a module, and keeps them there.

    Args:
        layout: that of the module.
        module: whose construction ends, or which raw optree or a trace made.
        checked: names of fields that are checked against their kinds. Others were before; since
            then any value may stand in a leaf's place.
        old: a module of which this one is a copy, but for the fields that are ``checked``.
    """
    whole, places = (None, ()) if old is None else spread(old)
    leaves: Any = []
    entries = []
    for name, kind in layout.kinds.items():
        check_now = name in checked
        if whole is None or check_now:
            value = getattr(module, name)
            entry = _enter(value, kind, layout.where[name], leaves, check_now)
        else:
            _, start, entry = whole.named[name]
            leaves += places[start : start + entry.n_places]
        entries.append(entry)
    constants = tuple([getattr(module, name) for name in layout.constants])
    leaves, expand = find_ties(leaves)
    note = tuple(module._spec or PLAIN)
    structure = _module_structure(layout, constants, tuple(entries), expand, note)
    if not is_compiling():
        _set(module, "_spec", structure)
        _set(module, "_leaves", leaves)
    return structure


def _enter(value: Any, kind: Kind, where: str, leaves: list[Any], check_now: bool) -> Any:
    """The entry of a value in the structure; its leaves are appended, one for each place."""
    if is_module(value):
        if check_now and (not kind.child or value._spec is None):
            check(value, kind, where)  # raises
        structure, places = spread(value)
        leaves += places
        return structure
    cls = type(value)
    if kind.holds(cls) and (kind.child or cls not in NODES or not check_now):
        constants, children = opened(value) or ((), ())
        keys = keys_of(cls, constants, len(children))
        entries = [
            _enter(child, inner, f"{where}[{key!r}]" if check_now else where, leaves, check_now)
            for key, child, inner in zip(keys, children, kind.below(cls, len(keys)), strict=True)
        ]
        return _container_structure(cls, constants, tuple(entries))
    if kind.constant and value is not None and not isinstance(value, (Tensor, Lazy)):
        return Static(value, where)
    if check_now:
        check(value, kind, where)
    leaves.append(value)
    return kind.role()


def spread(module: Any) -> tuple[Structure, Sequence[Any]]:
    """The structure of a module, and its leaves, a tied one in each of its places."""
    structure = spec_of(module)  # first, as it describes the module with its leaves
    leaves, expand = leaves_of(module), structure.expand
    return structure, leaves if expand is None else [leaves[k] for k in expand]


def local_part(module: Any) -> Local:
    """The local part of a module that has no structure yet."""
    layout: Layout = type(module).__layout__.itself()
    constants = tuple([getattr(module, name) for name in layout.constants])
    return layout.local(constants, tuple(note_of(module)))


@real
def _module_structure(
    layout: Layout,
    constants: tuple[Any, ...],
    children: tuple[Any, ...],
    expand: tuple[int, ...] | None,
    note: tuple[Any, ...],
) -> Structure:
    """The structure of a module with these constants and entries."""
    return structure_of(layout.local(constants, note), children, expand)


@real
def _container_structure(
    cls: type, constants: tuple[Any, ...], children: tuple[Any, ...]
) -> Structure:
    """The structure of a container with these constants and entries."""
    key = tuple(constant_key(value, cls.__name__) for value in constants)
    return structure_of(local_of(cls, constants, key), children)
