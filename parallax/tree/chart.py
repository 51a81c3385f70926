"""Where everything stands in the trees of one structure: paths, roles, ties, frozen marks.

A ``Chart`` holds no leaves, so eager code makes one for many trees and remembers with it what
follows from it. While dynamo traces, structures are modules and nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from parallax._compat import dynamo
from parallax.core import tracing
from parallax.core.notes import note_of
from parallax.core.structure import SLOT, Leaf, Note, Static, Structure
from parallax.random import Key
from parallax.tree import core

__all__ = ["Chart", "Entry", "chart_of"]

_CHARTS = 16  # one of 10,000 leaves takes 6 MB, and what is remembered with it as much
_REMEMBERED = 64


class Entry:
    """The place of one node or leaf.

    Attributes:
        path: dotted, from the root of the tree.
        node: its structure; of a leaf its ``Leaf``, and while tracing of a node its value.
        cls: the class of a node; ``None`` for a leaf.
        role: of a leaf, ``"parameter"``, ``"buffer"``, ``"key"`` or ``"slot"``.
        leaf: of a leaf, its index among the unique leaves; -1 for a node.
        start: the first place for a leaf at or below it.
        stop: the place after the last one.
        item: which of the tree's outermost modules and leaves it belongs to.
        keys: how it is reached from that item.
    """

    __slots__ = ("cls", "item", "keys", "leaf", "node", "path", "role", "start", "stop")

    def __init__(
        self,
        path: str,
        node: Any,
        start: int,
        stop: int,
        item: int,
        keys: tuple[Any, ...],
        leaf: int,
        above: Any,
    ) -> None:
        self.path = path
        self.node = node
        self.start = start
        self.stop = stop
        self.item = item
        self.keys = keys
        self.leaf = leaf
        if type(node) is Leaf:
            self.cls: Any = None
            self.role: str = "key" if above is Key else node.role
        else:
            self.cls = node.cls if type(node) is Structure else type(node)
            self.role = ""

    @property
    def is_module(self) -> bool:
        """Whether a module stands there, neither a container nor a leaf."""
        return hasattr(self.cls, "__layout__")

    @property
    def note(self) -> Note:
        """The note of a module."""
        node = self.node
        return node.local.note if type(node) is Structure else note_of(node)

    def holds(self, other: Entry) -> bool:
        """Whether the other place is this one or lies below it."""
        return self.item == other.item and self.keys == other.keys[: len(self.keys)]


class Chart:
    """Where everything stands in the trees of one structure.

    Attributes:
        spec: the structure.
        entries: every node and leaf in preorder, tied ones in each of their places.
        expand: for each place the index of its unique leaf.
        owners: for each place the entry of the innermost module around it; ``None`` for none.
        first: for each unique leaf, its entry where it stands first.
        frozen: the indices of the unique leaves that are frozen.
    """

    def __init__(self, spec: core.TreeSpec) -> None:
        self.spec = spec
        self.entries: list[Entry] = []
        self.expand: list[int] = []
        self.owners: list[Entry | None] = []
        self.first: list[Entry] = []
        self.frozen: set[int] = set()
        self._over: dict[tuple[int, ...], list[Entry]] = {}
        self._remembered: dict[Any, Any] = {}
        for item, prefix in enumerate(core.item_paths(spec.outer)):
            self._enter(item, prefix, spec.parts[item])

    def _enter(self, item: int, prefix: str, part: Any) -> None:
        """Adds the places of one outermost module or leaf."""
        unique = len(self.first)
        self.expand += [unique + index for index in core.expand_of(part)]
        around: list[tuple[Entry, Entry | None]] = []  # the nodes above, each with its module
        for keys, node in _walk(part):
            place, path = len(self.owners), prefix
            while len(around) > len(keys):
                around.pop()[0].stop = place
            above, owner = around[-1] if around else (None, None)
            if above is not None:
                path = f"{above.path}.{keys[-1]}" if above.path else str(keys[-1])
            leaf = self.expand[place] if type(node) is Leaf else -1
            entry = Entry(path, node, place, place + 1, item, keys, leaf, above and above.cls)
            self.entries.append(entry)
            if entry.cls is not None:
                around.append((entry, entry if entry.is_module else owner))
                own = entry.note.frozen if entry.is_module else ()
                self.frozen.update([self.expand[place + offset] for offset in own])
                continue
            self.owners.append(owner)
            if leaf == len(self.first):
                self.first.append(entry)
        for entry, _ in around:
            entry.stop = len(self.owners)

    @property
    def tied(self) -> bool:
        """Whether a leaf stands in several places."""
        return len(self.first) < len(self.expand)

    def unique(self, entry: Entry) -> tuple[int, ...]:
        """The indices of the unique leaves at or below an entry."""
        return tuple(self.expand[entry.start : entry.stop])

    def twins(self, entry: Entry) -> list[Entry]:
        """All entries that are one thing with this one, by a tie; itself among them, in order."""
        unique = self.unique(entry)
        if not unique or not self.tied:
            return [entry]
        if not self._over:
            over: dict[tuple[int, ...], list[Entry]] = {}
            for other in self.entries:
                over.setdefault(self.unique(other), []).append(other)
            self._over = over
        return [other for other in self._over[unique] if _same(other, entry)]

    def distinct(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries, one for each thing: that which comes first."""
        found: dict[Any, Entry] = {}
        for entry in entries:
            found.setdefault(entry.leaf if entry.cls is None else self._identity(entry), entry)
        return list(found.values())

    def _identity(self, node: Entry) -> Any:
        """What the entries of two nodes share if and only if they are one thing."""
        if self.tied and node.item >= 0:
            node = self.twins(node)[0]
        return node.item, node.keys

    def remember(self, make: Callable[..., Any], *args: Any) -> Any:
        """``make(self, *args)``, made once: it must follow from the structure alone."""
        if dynamo.is_compiling():
            return make(self, *args)
        key = (make, *args)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = make(self, *args)
        return found


_known = lru_cache(maxsize=_CHARTS)(Chart)


def chart_of(spec: core.TreeSpec) -> Chart:
    """The chart of all trees of a structure."""
    if dynamo.is_compiling():
        return Chart(spec)
    return _known(spec.with_rngs([None] * len(spec.parts)))  # keeps no key alive


def _walk(part: Any) -> Iterable[tuple[tuple[Any, ...], Any]]:
    """Every node and leaf of a module, or the leaf outside of any, with its keys; no constants."""
    if part is None:
        return [((), SLOT)]
    if type(part) is tracing.Outline:
        return tracing.walk(part.module)
    return [(keys, node) for keys, node in part.walk() if type(node) is not Static]


def _same(one: Entry, two: Entry) -> bool:
    """Whether two entries over the same leaves are alike: one module in two fields, say."""
    if one.cls is not two.cls:
        return False
    if not one.is_module:
        return one.cls is None or one.path == two.path
    if type(one.node) is Structure:
        return bool(one.node.skeleton == two.node.skeleton)
    mine, theirs = tracing.take_apart(one.node)[1], tracing.take_apart(two.node)[1]
    return mine.ties == theirs.ties and mine.difference(theirs) is None
