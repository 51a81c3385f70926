"""What stands where in a tree: every node and leaf with its path, its role and its leaves.

Found by walking the values themselves, which works while dynamo traces as well as in eager.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from parallax.fields import Buffer, Lazy, Parameter
from parallax.frozendict import FrozenDict
from parallax.kinds import Kind
from parallax.nodes import NODES, is_module
from parallax.notes import note_of
from parallax.random import Key
from parallax.tree import core

__all__ = ["Entry", "Survey", "child", "follow"]

_ANY = Kind(leaf=Tensor, child=True, optional=True)
_KEY = Kind(leaf=Key, optional=True)
_ROLES: dict[Any, str] = {Parameter: "parameter", Buffer: "buffer", Key: "key"}


class Entry(NamedTuple):
    """One node or leaf of a tree.

    Attributes:
        path: dotted, from the root of the tree.
        value: what stands there.
        kind: ``"leaf"``, ``"module"`` or ``"container"``.
        role: of a leaf, ``"parameter"``, ``"buffer"``, ``"key"`` or ``"slot"``.
        start: the first place for a leaf at or below it.
        stop: the place after the last one.
        item: which of the tree's outermost modules and leaves it belongs to.
        keys: how it is reached from that item.
        owner: the index of the entry of the innermost module around it; -1 for none.
    """

    path: str
    value: Any
    kind: str
    role: str
    start: int
    stop: int
    item: int
    keys: tuple[Any, ...]
    owner: int


class Survey:
    """A whole tree, looked at once.

    Attributes:
        leaves: the unique leaves, holes included, as ``tree.flatten`` orders them.
        spec: the structure, as ``tree.flatten`` returns it.
        entries: every node and leaf in preorder, tied ones in each of their places.
        expand: for each place the index of its unique leaf.
        frozen: the indices of the unique leaves that are frozen.
        first: for each unique leaf, its entry where it stands first.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self._over: dict[tuple[int, ...], list[Entry]] | None = None
        self.leaves, self.spec = core.flatten(tree)
        self.entries: list[Entry] = []
        self.expand: list[int] = []
        frozen_places: list[int] = []
        for number, (prefix, item) in enumerate(core.items_with_paths(tree)):
            begin = len(self.expand)
            walker = _Walker(number, begin, self.entries, frozen_places)
            walker.visit(item, _ANY, prefix, (), -1)
            part = self.spec.parts[number]
            unique = max(self.expand, default=-1) + 1
            self.expand += [unique + k for k in core.expand_of(part)]
        self.frozen = {self.expand[place] for place in frozen_places}
        self.first: list[Entry] = []
        for entry in self.entries:
            if entry.kind == "leaf" and self.expand[entry.start] == len(self.first):
                self.first.append(entry)

    def unique(self, entry: Entry) -> tuple[int, ...]:
        """The indices of the unique leaves at or below an entry."""
        return tuple(self.expand[entry.start : entry.stop])

    def twins(self, entry: Entry) -> list[Entry]:
        """All entries that are one thing with this one, by a tie; itself among them, in order."""
        unique = self.unique(entry)
        if not unique or len(self.first) == len(self.expand):
            return [entry]
        if self._over is None:
            self._over = {}
            for other in self.entries:
                self._over.setdefault(self.unique(other), []).append(other)
        return [other for other in self._over[unique] if _same(other, entry)]

    def identity(self, entry: Entry) -> Any:
        """What two entries share if and only if they are one thing."""
        first = self.twins(entry)[0]
        return first.item, first.keys


def _same(one: Entry, two: Entry) -> bool:
    """Whether two entries over the same leaves are alike: one module in two fields, say."""
    if one.kind != two.kind or type(one.value) is not type(two.value):
        return False
    if one.kind != "module":
        return one.kind == "leaf" or one.path == two.path
    return core.fit(one.value, two.value)


class _Walker:
    """Walks one module, or one leaf that stands outside of any."""

    def __init__(self, item: int, place: int, entries: list[Entry], frozen: list[int]) -> None:
        self.item = item
        self.place = place
        self.entries = entries
        self.frozen = frozen

    def visit(self, value: Any, kind: Kind, path: str, keys: tuple[Any, ...], owner: int) -> None:
        below = _below(value, kind)
        if below is None:
            if kind.constant and value is not None and not isinstance(value, (Tensor, Lazy)):
                return
            start, self.place = self.place, self.place + 1
            role = _role(kind)
            self.entries.append(
                Entry(path, value, "leaf", role, start, self.place, self.item, keys, owner)
            )
            return
        index, start = len(self.entries), self.place
        what = "module" if is_module(value) else "container"
        self.entries.append(Entry(path, value, what, "", start, start, self.item, keys, owner))
        if what == "module":
            owner = index
            self.frozen += [start + offset for offset in note_of(value).frozen]
        for key, child, child_kind in below:
            self.visit(
                child, child_kind, f"{path}.{key}" if path else str(key), (*keys, key), owner
            )
        self.entries[index] = self.entries[index]._replace(stop=self.place)


def _below(value: Any, kind: Kind) -> list[tuple[Any, Any, Kind]] | None:
    """Key, value and kind of each child of a node; ``None`` for a leaf or a constant."""
    cls = type(value)
    if is_module(value):
        layout = cls.__layout__
        return [(name, getattr(value, name), layout.kinds[name]) for name in layout.children]
    if kind.items is not None and isinstance(value, tuple):
        keys = getattr(cls, "_fields", None) or range(len(value))
        return [(key, item, kind.item(k)) for k, (key, item) in enumerate(zip(keys, value))]  # noqa: B905  # dynamo traces no strict=
    if kind.mapping is not None and isinstance(value, FrozenDict):
        return [(key, item, kind.mapping) for key, item in value.items()]
    if cls in NODES:
        inner = _KEY if cls is Key else _ANY
        return [(k, child, inner) for k, child in enumerate(NODES[cls].flatten(value)[0])]
    return None


def _role(kind: Kind) -> str:
    return _ROLES.get(kind.leaf, "slot")


def follow(item: Any, keys: tuple[Any, ...]) -> Any:
    """What stands at ``keys`` below ``item``."""
    for key in keys:
        item = child(item, key)
    return item


def child(node: Any, key: Any) -> Any:
    """The child of a module or container at ``key``."""
    cls = type(node)
    if is_module(node) or hasattr(cls, "_fields"):
        return getattr(node, key)
    return tuple(NODES[cls].flatten(node)[0])[key] if cls in NODES else node[key]
