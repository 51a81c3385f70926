"""The layout of one module class: its fields, resolved, and how an instance is sealed.

Sealing ends construction: defaults and converters are applied, every value is checked against
its field's kind, lists and dicts of children are frozen, ties are found, and the structure is
attached. From then on the module never changes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax._compat.opaque import constant_while_tracing, real
from parallax.core.constants import constant_key
from parallax.core.fields import MISSING, Field, Lazy, Parameter
from parallax.core.frozendict import FrozenDict
from parallax.core.kinds import Kind
from parallax.core.nodes import NODES, is_module
from parallax.core.structure import (
    BUFFER,
    PARAMETER,
    PLAIN,
    SLOT,
    Leaf,
    Local,
    Note,
    Static,
    Structure,
    local_of,
    structure_of,
)

__all__ = ["Layout", "annotation_of", "check_set", "converted", "describe", "find_ties",
           "leaves_of", "local_part", "note_of", "role_of", "seal", "spec_of"]  # fmt: skip


_NONE_YET: Mapping[str, Any] = {}
_set = object.__setattr__
_ANY = Kind(leaf=Tensor, child=True, optional=True)  # inside a registered node
_ROLES: dict[type, Leaf] = {Parameter: PARAMETER, Tensor: SLOT}


@constant_while_tracing
class Layout:
    """The resolved fields of a class.

    Attributes:
        cls: the class.
        fields: all fields by name, inherited ones first.
        children: the names whose values are leaves, modules or containers of them.
        constants: the names whose values belong to the structure.
        nested: those of ``children`` under which modules may be found.
        latest: the structures that were made last, kept for the next module like them.
        sealed: structures by what the generated seal tells modules apart by.
    """

    def __init__(self, cls: type, fields: dict[str, Field]) -> None:
        self.cls = cls
        self.fields = fields
        self.children = tuple(n for n, f in fields.items() if f.kind.dynamic and not f.static)
        self.constants = tuple(n for n in fields if n not in self.children)
        self.kinds = {name: fields[name].kind for name in self.children}
        self.nested = tuple(n for n, k in self.kinds.items() if k.child or not k.flat)
        self.latest: deque[Structure] = deque(maxlen=16)
        self.sealed: dict[Any, Structure] = {}

    def forget(self) -> None:
        """Lets go of all structures, and of what was computed of them."""
        for structure in (*self.latest, *self.sealed.values()):
            structure.forget()
        self.latest.clear()
        self.sealed.clear()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def local(self, constants: tuple[Any, ...], note: tuple[Any, ...]) -> Local:
        """The interned local part of a module with these constants."""
        keys = [
            constant_key(value, f"{self.cls.__name__}.{name}")
            for name, value in zip(self.constants, constants, strict=True)
        ]
        return local_of(self.cls, constants, tuple(keys), Note(*note))


def converted(layout: Layout, name: str, value: Any) -> Any:
    """What a value given for a field becomes."""
    converter = layout.fields[name].converter
    return value if converter is None else converter(value)


def seal(
    layout: Layout,
    module: Any,
    *,
    convert: bool = True,
    admitted: Mapping[str, Any] = _NONE_YET,
) -> None:
    """Checks a constructed module and attaches its structure; then it is frozen.

    Args:
        layout: that of its class.
        module: an instance whose fields are set.
        convert: whether the fields' converters are still to run.
        admitted: entries of the fields that were admitted before, which may hold holes now.

    Raises:
        TypeError: if a field was never set, or holds a value its annotation does not allow.
    """
    constants, children = [], []
    leaves: list[Any] = []
    for name, field in layout.fields.items():
        value = _final(layout, module, name, field, convert)
        where = f"{layout.cls.__name__}.{name}"
        if name in layout.kinds:
            entry = admitted.get(name)
            if entry is None:
                value, entry = _enter_field(layout, module, name, value, where)
            children.append(entry)
            _gather(value, entry, leaves)
        else:
            constants.append(value)
    unique, expand = find_ties(leaves)
    structure = _structure(layout, tuple(constants), tuple(children), expand, PLAIN)
    _set(module, "_spec", structure)
    _set(module, "_leaves", unique)


def _enter_field(layout: Layout, module: Any, name: str, value: Any, where: str) -> tuple[Any, Any]:
    """Admits the value of a child field, its containers frozen on the module."""
    frozen, entry = enter(value, layout.kinds[name], where)
    if frozen is not value:
        _set(module, name, frozen)
    return frozen, entry


def check_set(layout: Layout, module: Any, *, convert: bool = True) -> None:
    """All of ``seal`` that can be traced: every field is set, and containers are frozen."""
    for name, field in layout.fields.items():
        value = _final(layout, module, name, field, convert)
        kind = field.kind.itself()
        if name in layout.kinds and not kind.flat:
            object.__setattr__(module, name, freeze(value, kind))


def _final(layout: Layout, module: Any, name: str, field: Field, convert: bool) -> Any:
    """The field's value with its default and converter applied, set on the module."""
    value = old = getattr(module, name, MISSING)
    if value is MISSING:
        if not field.has_default:
            raise TypeError(_unset(layout, module))
        value = field.make_default()
    if convert and field.converter is not None:
        value = field.converter(value)
    if old is MISSING or (convert and field.converter is not None):
        # Not _set: dynamo takes an alias for the __setattr__ of the class.
        object.__setattr__(module, name, value)
    return value


def _unset(layout: Layout, module: Any) -> str:
    cls = layout.cls.__name__
    missing = [
        name
        for name, field in layout.fields.items()
        if not field.has_default and getattr(module, name, MISSING) is MISSING
    ]
    lines = "; ".join(f"self.{name} = ..." for name in missing)
    return (
        f"{cls}.{missing[0]} was never set. Every declared field needs a value by the end of "
        f"{cls}.__init__: write {lines} there, or give a default: field(default=...)"
    )


@real
def _structure(
    layout: Layout,
    constants: tuple[Any, ...],
    children: tuple[Any, ...],
    expand: tuple[int, ...] | None,
    note: tuple[Any, ...],
) -> Structure:
    return structure_of(layout.local(constants, note), children, expand)


def local_part(module: Any) -> Local:
    """The local part of a module that has no structure yet."""
    layout: Layout = type(module).__layout__.itself()
    constants = tuple([getattr(module, name) for name in layout.constants])
    return layout.local(constants, tuple(note_of(module)))


def find_ties(places: list[Any]) -> tuple[tuple[Any, ...], tuple[int, ...] | None]:
    """The unique leaves, and per place the index of its own: one tensor in two places is a tie.

    Or one declaration; but equal numbers, in the places of leaves, are one object by chance.
    """
    if is_compiling():
        return _find_ties_in_trace(places)
    present = [id(leaf) for leaf in places if isinstance(leaf, (Tensor, Lazy))]
    if len(set(present)) == len(present):
        return tuple(places), None
    index: dict[int, int] = {}
    unique: list[Any] = []
    expand: list[int] = []
    for leaf in places:
        known = index.get(id(leaf)) if isinstance(leaf, (Tensor, Lazy)) else None
        if known is None:
            known = index[id(leaf)] = len(unique)
            unique.append(leaf)
        expand.append(known)
    return tuple(unique), tuple(expand)


def _find_ties_in_trace(places: list[Any]) -> tuple[tuple[Any, ...], tuple[int, ...] | None]:
    """As above: dynamo has no ``id`` of a tensor, and hashes it by identity, as Python does."""
    index: dict[Any, int] = {}
    unique: list[Any] = []
    expand: list[int] = []
    for leaf in places:
        if isinstance(leaf, Tensor):
            if leaf in index:
                expand.append(index[leaf])
                continue
            index[leaf] = len(unique)
        expand.append(len(unique))
        unique.append(leaf)
    return tuple(unique), None if len(unique) == len(places) else tuple(expand)


def _gather(value: Any, entry: Any, leaves: list[Any]) -> None:
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


def spec_of(module: Any) -> Structure:
    """The structure of a module; one that raw optree or a trace made is described here first."""
    spec = module._spec
    if type(spec) is not Structure:
        return describe(module)
    return spec.itself() if is_compiling() else spec  # type: ignore[attr-defined]  # of every constant of a trace


def note_of(module: Any) -> Note:
    """The note of a module, whatever made it."""
    spec = module._spec
    if type(spec) is not Structure:
        return spec or PLAIN
    return spec.itself().note if is_compiling() else spec.note  # type: ignore[attr-defined]  # as above


def describe(module: Any) -> Structure:
    """Finds the structure of a module whose leaves came from outside, and keeps it on it."""
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
        _gather(value, entry, leaves)
    unique, expand = find_ties(leaves)
    constants = tuple([getattr(module, name) for name in layout.constants])
    structure = _structure(layout, constants, tuple(children), expand, tuple(note_of(module)))
    if not is_compiling():
        _set(module, "_spec", structure)
        _set(module, "_leaves", unique)
    return structure


def _describe(value: Any, kind: Kind, where: str) -> Any:
    """As ``enter``, for values that passed it once: whatever stands in a leaf's place is a leaf."""
    if is_module(value):
        return spec_of(value)
    if type(value) in NODES:
        return _enter_node(value, where, _describe)
    if kind.items is not None and isinstance(value, tuple):
        parts = [_describe(v, kind.item(k), where) for k, v in enumerate(value)]
        return _container(type(value), (), tuple(parts))
    if kind.mapping is not None and isinstance(value, FrozenDict):
        parts = [_describe(v, kind.mapping, where) for v in value.values()]
        return _container(FrozenDict, (tuple(value),), tuple(parts))
    if kind.constant and value is not None and not isinstance(value, (Tensor, Lazy)):
        return Static(value, where)
    return role_of(kind)


@real
def role_of(kind: Kind) -> Leaf:
    """What a leaf is that stands where a value of this kind may."""
    return SLOT if kind.leaf is None else _ROLES.get(kind.leaf, BUFFER)


def enter(value: Any, kind: Kind, where: str) -> tuple[Any, Any]:
    """Admits a value to a child field.

    Args:
        value: what was assigned.
        kind: what the annotation allows.
        where: the field, for error messages, as ``Class.field``.

    Returns:
        The value with its containers frozen, and its entry in the structure.

    Raises:
        TypeError: if the annotation does not allow the value.
        ValueError: if the value is a module that is still being constructed, hence a cycle.
    """
    if kind.leaf is not None and isinstance(value, (Tensor, Lazy)):
        return _enter_leaf(value, kind, where)
    if value is None:
        if kind.optional or kind.constant:  # a hole, also where constants are allowed
            return None, role_of(kind)
    elif is_module(value):
        if kind.child:
            return value, _enter_module(value, where)
    elif type(value) in NODES:
        if kind.child:
            return value, _enter_node(value, where, lambda v, k, w: enter(v, k, w)[1])
    elif kind.items is not None and isinstance(value, (tuple, list)):
        return _enter_sequence(value, kind, where)
    elif kind.mapping is not None and isinstance(value, Mapping):
        _check_keys(value, where)
        pairs = {key: enter(item, kind.mapping, f"{where}[{key!r}]") for key, item in value.items()}
        frozen = FrozenDict({key: admitted for key, (admitted, _) in pairs.items()})
        entries = [entry for _, entry in pairs.values()]
        return frozen, _container(FrozenDict, (tuple(frozen),), tuple(entries))
    if kind.constant and not is_module(value):
        return value, Static(value, where)
    raise TypeError(_unexpected(value, kind, where))


def freeze(value: Any, kind: Kind) -> Any:
    """A value of a child field with its containers frozen as ``enter`` does it, unchecked."""
    if kind.items is not None and isinstance(value, (tuple, list)):
        items = [freeze(item, kind.item(k)) for k, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if kind.mapping is not None and isinstance(value, dict):
        return FrozenDict({key: freeze(item, kind.mapping) for key, item in value.items()})
    return value


def _enter_leaf(value: Any, kind: Kind, where: str) -> tuple[Any, Any]:
    if isinstance(value, Lazy):
        if kind.leaf is not Tensor and type(value) is not kind.leaf:
            assert kind.leaf is not None
            given, name = type(value).__name__, where.rsplit(".", 1)[-1]
            raise TypeError(
                f"{where} is annotated {kind.leaf.__name__} and was given a {given} declaration. "
                f"Write '{name}: {given}', or assign {kind.leaf.__name__}(shape, init)."
            )
        value.owner = value.owner or where
    return value, role_of(kind)


def _enter_module(value: Any, where: str) -> Structure:
    if value._spec is None:
        raise ValueError(
            f"{where} was given {type(value).__name__} while that is still being constructed: "
            f"a module cannot contain itself. Pass what the child needs as arguments instead."
        )
    return spec_of(value)


def _enter_node(value: Any, where: str, enter_child: Callable[[Any, Kind, str], Any]) -> Structure:
    children, aux = NODES[type(value)].flatten(value)
    entries = [enter_child(child, _ANY, f"{where}[{k}]") for k, child in enumerate(children)]
    return _container(type(value), (aux,), tuple(entries))


def _enter_sequence(value: Any, kind: Kind, where: str) -> tuple[Any, Any]:
    assert kind.items is not None
    if not kind.variadic and len(value) != len(kind.items):
        raise TypeError(f"{where} is a tuple of {len(kind.items)} items, got {len(value)}")
    pairs = [enter(item, kind.item(k), f"{where}[{k}]") for k, item in enumerate(value)]
    items, entries = [item for item, _ in pairs], [entry for _, entry in pairs]
    cls = type(value) if hasattr(value, "_fields") else tuple
    frozen = cls(*items) if hasattr(cls, "_fields") else tuple(items)
    if type(value) is cls and all(a is b for a, b in zip(frozen, value, strict=True)):
        frozen = value
    return frozen, _container(cls, (), tuple(entries))


def _check_keys(value: Mapping[Any, Any], where: str) -> None:
    """Raises if the dotted paths of the items would not say which item is meant."""
    names = [str(key) for key in value]
    for name in names:
        if not name or "." in name or names.count(name) > 1:
            raise ValueError(
                f"{where} has the key {name!r}. Keys are parts of dotted paths: they must not be "
                f"empty, hold a dot, or read the same. Write another key, such as "
                f"{name.replace('.', '_') or '_'!r}."
            )


@real
def _container(cls: type, constants: tuple[Any, ...], entries: tuple[Any, ...]) -> Structure:
    key = tuple(constant_key(value, cls.__name__) for value in constants)
    return structure_of(local_of(cls, constants, key), entries)


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
