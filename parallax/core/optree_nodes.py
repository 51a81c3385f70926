"""How optree takes a module apart: its children, and beside them its local part.

Raw optree sees the nested tree. A constant that stands in the place of a child becomes a node
without leaves there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optree
from torch import Tensor

from parallax._compat import registries
from parallax.core.code import define
from parallax.core.containers import built, opened
from parallax.core.entries import Local, Static
from parallax.core.fields import Lazy
from parallax.core.frozendict import FrozenDict
from parallax.core.layout import Layout
from parallax.core.module_structure import local_part
from parallax.core.nodes import is_node, reading

__all__ = ["optree_functions"]


@dataclass(slots=True, repr=False, unsafe_hash=True)
class Carried:
    """A module's local part with the rng it holds, which is carried and never compared."""

    local: Local
    rng: Any = field(compare=False)

    def __repr__(self) -> str:
        return repr(self.local)


class Aside:
    """A constant in the place of a child, as a node without leaves."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return type(other) is Aside and Static(self.value, "child") == Static(other.value, "child")

    def __hash__(self) -> int:
        return hash(Static(self.value, "child"))

    def __repr__(self) -> str:
        return repr(self.value)


def optree_functions(layout: Layout, cls: type) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Generates ``flatten``, which returns the children, and ``unflatten``, which fills a new dict.

    Writes into ``o.__dict__`` are what dynamo can trace; see ``flatten`` for the eager form.
    """
    mixed = {name for name, kind in layout.kinds.items() if kind.mixed}
    children = "".join(
        f"wrap({reading('m', name)}), " if name in mixed else f"{reading('m', name)}, "
        for name in layout.children
    )
    targets = "".join(f"d[{name!r}], " for name in layout.children)
    constants = "".join(f"d[{name!r}], " for name in layout.constants)
    source = f"""
def flatten(m):
    try:
        local = m._spec.local
    except AttributeError:  # what raw optree or a traced function made has no structure yet
        local = local_of(m)
    if m._rng is not None:
        local = Carried(local, m._rng)
    return ({children}), local, entries

def unflatten(local, children):
    o = new(cls)
    d = o.__dict__
    if type(local) is Carried:
        d["_rng"] = local.rng
        local = local.local
    d["_spec"] = local.note
    {f"{targets} = children" if layout.children else "pass"}
    {f"{constants} = local.constants" if layout.constants else "pass"}
    {"; ".join(f"d[{name!r}] = unwrap(d[{name!r}])" for name in sorted(mixed)) or "pass"}
    return o
"""
    scope: dict[str, Any] = {
        "Carried": Carried,
        "cls": cls,
        "entries": layout.children,
        "local_of": local_part,
        "new": object.__new__,
        "unwrap": _unwrap,
        "wrap": _wrap,
    }
    flatten, unflatten = define(source, scope, ("flatten", "unflatten"))
    return flatten, unflatten


def _wrap(value: Any) -> Any:
    """Puts a constant in a child's place into a node without leaves."""
    if value is None or is_node(type(value)) or isinstance(value, (Tensor, Lazy)):
        return value
    found = opened(value)
    if found is None:
        return Aside(value)
    constants, children = found
    return built(type(value), constants, [_wrap(child) for child in children])


def _unwrap(value: Any) -> Any:
    if type(value) is Aside:
        return value.value
    found = None if is_node(type(value)) else opened(value)
    if found is None:
        return value
    constants, children = found
    return built(type(value), constants, [_unwrap(child) for child in children])


registries.register_optree_node(
    Aside, lambda aside: ((), aside), lambda aside, _: aside, entry=optree.AutoEntry
)
registries.register_optree_node(
    FrozenDict,
    lambda items: (tuple(items.values()), tuple(items), tuple(items)),
    lambda keys, values: FrozenDict(zip(keys, values, strict=True)),
    entry=optree.MappingEntry,
)
