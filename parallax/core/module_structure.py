"""Takes modules apart into a structure and leaves, however they were made, and builds them.

A module gets them at the end of its construction. A module that raw optree or a trace made gets
them when it is first taken apart.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import Any

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax._compat.opaque import real
from parallax.core.constants import constant_key
from parallax.core.containers import keys_of, opened
from parallax.core.entries import PLAIN, Local, Note, Static, local_of
from parallax.core.field_values import check
from parallax.core.fields import Lazy
from parallax.core.kinds import Kind
from parallax.core.layout import Layout
from parallax.core.nodes import NODES, is_module
from parallax.core.structure import Structure, structure_of
from parallax.core.ties import find_ties

__all__ = [
    "describe",
    "flatten_module",
    "leaves_of",
    "local_part",
    "modules_in",
    "note_of",
    "spec_of",
    "spread",
    "unflatten_module",
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


def flatten_module(module: Any) -> tuple[tuple[Any, ...], Structure]:
    """The unique leaves and the structure of a module.

    Both are computed once and kept on the module. ``tree.flatten`` is the same for any tree.

    Args:
        module: a module.

    Returns:
        The leaves and the structure. A tied leaf comes once, and a hole comes as ``None``.

    Example:
        >>> import torch
        >>> from parallax import nn, registry
        >>> leaves, structure = registry.flatten_module(nn.Linear(3, 2, bias=False).initialize(0))
        >>> structure.paths, [None if leaf is None else leaf.shape for leaf in leaves]
        (('weight', 'bias'), [torch.Size([2, 3]), None])
    """
    structure = module._spec
    if type(structure) is not Structure or is_compiling():
        structure = spec_of(module)
    return leaves_of(module), structure


def unflatten_module(structure: Structure, leaves: Iterable[Any], rng: Any = None) -> Any:
    """Builds a module from its structure and leaves; the inverse of ``flatten_module``.

    Args:
        structure: what ``flatten_module`` returned.
        leaves: as many leaves as it returned. Their number is not checked here, as it is by
            ``tree.unflatten``.
        rng: the random state that the module holds; by default none.

    Returns:
        The module; no ``__init__``, converter or check of any class runs.

    Example:
        >>> import torch
        >>> from parallax import nn, registry
        >>> linear = nn.Linear(3, 2).initialize(0)
        >>> leaves, structure = registry.flatten_module(linear)
        >>> halved = registry.unflatten_module(structure, [leaf / 2 for leaf in leaves])
        >>> torch.equal(halved.weight, linear.weight / 2)
        True
    """
    leaves = tuple(leaves)
    if not is_compiling():
        module = structure.build(leaves, rng)
        _set(module, "_leaves", leaves)
        return module
    traced = structure.itself().traced  # type: ignore[attr-defined]  # of every constant of a trace
    module = traced("build")(leaves) if rng is None else traced("build_with_rng")(leaves, rng)
    # Spelled out: dynamo takes an alias of it for the __setattr__ of the class.
    object.__setattr__(module, "_leaves", leaves)
    return module


def modules_in(module: Any) -> tuple[Any, ...]:
    """A module and all below it, in preorder; one in several places comes as often."""
    return spec_of(module).shape.modules(module)


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
