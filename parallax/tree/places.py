"""One tree beside the chart of its structure: what stands where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from parallax.core.containers import child_at
from parallax.core.entries import SLOT, Leaf, Static
from parallax.core.nodes import is_module
from parallax.core.structure import Structure
from parallax.tree import core
from parallax.tree.chart import Chart, Entry, chart_of
from parallax.tree.outside import item_paths, opened_outside

__all__ = ["Survey", "follow"]


class Survey:
    """A tree, taken apart. Its chart is made when it is first asked for.

    Attributes:
        tree: the tree.
        leaves: the unique leaves, holes included, as ``tree.flatten`` orders them.
        spec: the structure, as ``tree.flatten`` returns it.
    """

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.leaves, self.spec = core.opened(tree)
        self._chart: Chart | None = None
        self._items: list[Any] | None = None

    @property
    def chart(self) -> Chart:
        """Where everything stands."""
        if self._chart is None:
            self._chart = chart_of(self.spec, self.leaves)
        return self._chart

    @property
    def expand(self) -> Sequence[int]:
        """For each place the index of its unique leaf."""
        parts = self.spec.parts
        return core.expand_of(parts[0]) if len(parts) == 1 else self.chart.expand

    @property
    def items(self) -> list[Any]:
        """The outermost modules and leaves."""
        if self._items is None:
            lone = self.spec.outer is None
            self._items = [self.tree] if lone else opened_outside(self.tree)[0]
        return self._items

    def values(self, entries: Iterable[Entry]) -> list[Any]:
        """What stands at entries."""
        leaves, items = self.leaves, self.items
        return [
            leaves[e.leaf]
            if e.cls is None
            else follow(items[e.item], e.keys)
            if e.item >= 0
            else e.value  # type: ignore[attr-defined]  # a container around the items
            for e in entries
        ]

    def present(self, entries: Iterable[Entry]) -> list[Entry]:
        """The entries without those of holes."""
        leaves = self.leaves
        return [e for e in entries if e.cls is not None or leaves[e.leaf] is not None]

    def indices(self, entries: Iterable[Entry]) -> list[int]:
        """The indices of the unique leaves at or below entries, as often as they are met."""
        found: list[int] = []
        for entry in entries:
            if entry.cls is None:
                found.append(entry.leaf)
            else:
                found += self.expand[entry.start : entry.stop]
        return found

    def at(self, path: str) -> Entry | None:
        """The entry at a dotted path, found by a walk along it."""
        begin = 0
        for item, prefix in enumerate(item_paths(self.spec.outer)):
            part = self.spec.parts[item]
            if path == prefix:
                return self._along([], path, item, begin)
            if not prefix or path.startswith(f"{prefix}."):
                names = path[len(prefix) + 1 if prefix else 0 :].split(".")
                entry = self._along(names, path, item, begin)
                if entry is not None:
                    return entry
            begin += 1 if part is None else part.n_places
        return None

    def _along(self, names: list[str], path: str, item: int, place: int) -> Entry | None:
        part = self.spec.parts[item]
        node: Any = SLOT if part is None else part
        above, keys = None, []
        for name in names:
            found = node.named.get(name) if type(node) is Structure else None
            if found is None:
                return None
            above = node.cls
            key, start, node = found
            keys.append(key)
            place += start
        if type(node) is Static:
            return None
        leaf, size = (self.expand[place], 1) if type(node) is Leaf else (-1, node.n_places)
        return Entry(path, node, place, place + size, item, tuple(keys), leaf, above)


def follow(item: Any, keys: tuple[Any, ...]) -> Any:
    """What stands at ``keys`` below ``item``."""
    for key in keys:
        item = getattr(item, key) if is_module(item) else child_at(item, key)
    return item
