"""Where everything stands in the trees of one structure: paths, roles, ties, frozen marks.

A ``Chart`` holds no leaves, so one is made for many trees, and what follows from it is remembered
with it. It is a constant to dynamo, as structures are. Of tied trees it knows where holes are: two
holes are no tie by themselves, and a module that stands in two places has its holes in both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from parallax._compat.opaque import constant_while_tracing, real
from parallax.core.entries import SLOT, Leaf, Note, Static
from parallax.core.structure import Structure
from parallax.random import Key
from parallax.tree import core
from parallax.tree.outside import item_paths

__all__ = ["Chart", "Entry", "chart_of"]

_CHARTS = 16  # one of 10,000 leaves takes 6 MB, and what is remembered with it as much
_REMEMBERED = 64


@constant_while_tracing
class Entry:
    """The place of one node or leaf.

    Attributes:
        path: dotted, from the root of the tree.
        node: its structure; of a leaf its ``Leaf``.
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
            self.cls = node.cls
            self.role = ""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @property
    def is_module(self) -> bool:
        """Whether a module stands there, neither a container nor a leaf."""
        return hasattr(self.cls, "__layout__")

    @property
    def note(self) -> Note:
        """The note of a module."""
        return self.node.note  # type: ignore[no-any-return]  # a structure

    def holds(self, other: Entry) -> bool:
        """Whether the other place is this one or lies below it."""
        return self.item == other.item and self.keys == other.keys[: len(self.keys)]


@constant_while_tracing
class Chart:
    """Where everything stands in the trees of one structure.

    Attributes:
        parts: per outermost module its structure, per other leaf ``None``.
        entries: every node and leaf in preorder, tied ones in each of their places.
        expand: for each place the index of its unique leaf.
        owners: for each place the entry of the innermost module around it; ``None`` for none.
        first: for each unique leaf, its entry where it stands first.
        frozen: the indices of the unique leaves that are frozen.
    """

    def __init__(
        self, parts: tuple[Structure | None, ...], prefixes: tuple[str, ...], holes: tuple[int, ...]
    ) -> None:
        self.parts = parts
        self.entries: list[Entry] = []
        self.expand: list[int] = []
        self.owners: list[Entry | None] = []
        self.first: list[Entry] = []
        self.frozen: set[int] = set()
        self._holes = frozenset(holes)
        self._lone_holes: frozenset[int] = frozenset()  # those that are not tied
        self._over: dict[tuple[int, ...], list[Entry]] = {}
        self._remembered: dict[Any, Any] = {}
        for item, prefix in enumerate(prefixes):
            self._enter(item, prefix, parts[item])

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

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
        if not self.tied:
            return [entry]
        if not self._over:
            self._over = self._by_leaves()
        if entry.leaf in self._lone_holes:
            return self._beside(entry)
        held = self._held(entry)
        if not held or max(held) < 0:  # nothing in it says what it is
            return [entry]
        return [other for other in self._over[held] if _same(other, entry)]

    def _by_leaves(self) -> dict[tuple[int, ...], list[Entry]]:
        count = Counter(self.expand)
        self._lone_holes = frozenset([hole for hole in self._holes if count[hole] == 1])
        over: dict[tuple[int, ...], list[Entry]] = {}
        for entry in self.entries:
            over.setdefault(self._held(entry), []).append(entry)
        return over

    def _held(self, entry: Entry) -> tuple[int, ...]:
        """The unique leaves at or below an entry; all holes that are not tied are alike."""
        lone = self._lone_holes
        return tuple([-1 if index in lone else index for index in self.unique(entry)])

    def _beside(self, hole: Entry) -> list[Entry]:
        """The entries of a hole in all places of the module around it."""
        owner = self.owners[hole.start]
        if owner is None:
            return [hole]
        at = hole.start - owner.start
        places = {twin.start + at for twin in self.twins(owner)}
        return [e for e in self.entries if e.cls is None and e.start in places]

    def distinct(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries, one for each thing: that which comes first."""
        found: dict[Any, Entry] = {}
        for entry in entries:
            leaf = entry.cls is None and entry.leaf not in self._holes
            found.setdefault(entry.leaf if leaf else self._identity(entry), entry)
        return list(found.values())

    def _identity(self, node: Entry) -> Any:
        """What the entries of two nodes share if and only if they are one thing."""
        if self.tied and node.item >= 0:
            node = self.twins(node)[0]
        return node.item, node.keys

    def remember(self, make: Callable[..., Any], *args: Any) -> Any:
        """``make(self, *args)``, made once: it must follow from the structure alone."""
        key = (make, *args)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = make(self, *args)
        return found


_known = lru_cache(maxsize=_CHARTS)(Chart)


def chart_of(spec: core.TreeSpec, leaves: Sequence[Any]) -> Chart:
    """The chart of all trees of a structure with holes where these leaves have them."""
    tied = any([part is not None and part.expand is not None for part in spec.parts])
    holes = tuple([k for k, leaf in enumerate(leaves) if leaf is None]) if tied else ()
    return _chart(tuple(spec.parts), tuple(item_paths(spec.outer)), holes)


@real
def _chart(
    parts: tuple[Structure | None, ...], prefixes: tuple[str, ...], holes: tuple[int, ...]
) -> Chart:
    return _known(parts, prefixes, holes)


def _walk(part: Structure | None) -> Iterable[tuple[tuple[Any, ...], Any]]:
    """Every node and leaf of a module, or the leaf outside of any, with its keys; no constants."""
    if part is None:
        return [((), SLOT)]
    return [(keys, node) for keys, _, node in part.walk() if type(node) is not Static]


def _same(one: Entry, two: Entry) -> bool:
    """Whether two entries over the same leaves are alike, such as one module in two fields."""
    if one.cls is not two.cls:
        return False
    if not one.is_module:
        return one.cls is None or one.path == two.path
    return bool(one.node.skeleton == two.node.skeleton)
