"""The layout of one module class: its fields, resolved."""

from __future__ import annotations

from collections import deque
from typing import Any

from parallax._compat import registries
from parallax._compat.opaque import constant_while_tracing
from parallax.core.constants import constant_key
from parallax.core.entries import Local, Note, local_of
from parallax.core.fields import Buffer, Field, Parameter
from parallax.core.structure import Structure

__all__ = ["Layout"]


@constant_while_tracing
class Layout:
    """The resolved fields of a class.

    Attributes:
        cls: the class.
        fields: all fields by name, inherited ones first.
        children: the names whose values are leaves, modules or containers of them.
        constants: the names whose values belong to the structure.
        where: what errors call each field: ``Class.field``.
        containers: those of ``children`` that may be tuples, lists or dicts.
        lone_leaves: those of ``children`` that are one leaf each, and taken as they are given.
        nested: those of ``children`` under which modules may be found.
        latest: the latest structures, kept for the next module with the same one.
        sealed: structures by the key that the generated seal computes.
        proxy: the class of proxies of its modules, once ``bridge.lower`` needs one.
        watching: the class of its watched modules, once there are some.
    """

    def __init__(self, cls: type, fields: dict[str, Field]) -> None:
        self.cls = cls
        self.fields = fields
        self.children = tuple(n for n, f in fields.items() if f.kind.dynamic and not f.static)
        self.constants = tuple(n for n in fields if n not in self.children)
        self.kinds = {name: fields[name].kind for name in self.children}
        self.nested = tuple(n for n, k in self.kinds.items() if k.child or not k.flat)
        self.where = {name: f"{cls.__name__}.{name}" for name in fields}
        self.containers = frozenset(n for n, k in self.kinds.items() if k.inner)
        self.lone_leaves = frozenset(
            name
            for name, kind in self.kinds.items()
            if kind.flat and kind.leaf in (Parameter, Buffer) and fields[name].converter is None
        )
        self.latest: deque[Structure] = deque(maxlen=16)
        self.sealed: dict[Any, Structure] = {}
        self.proxy: type | None = None
        self.watching: type | None = None

    def forget(self) -> None:
        """Releases all structures, and what was computed from them."""
        for structure in (*self.latest, *self.sealed.values()):
            structure.forget()
        self.latest.clear()
        self.sealed.clear()
        for made in (self.proxy, self.watching):
            if made is not None:
                registries.unregister_torch_node(made)
                registries.unregister_optree_node(made)
        self.proxy = self.watching = None

    def local(self, constants: tuple[Any, ...], note: tuple[Any, ...]) -> Local:
        """The interned ``Local`` of a module with these constants."""
        keys = [
            constant_key(value, self.where[name])
            for name, value in zip(self.constants, constants, strict=True)
        ]
        return local_of(self.cls, constants, tuple(keys), Note(*note))
