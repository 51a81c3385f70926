"""The containers that stand around the modules and leaves of a tree, as nodes to select."""

from __future__ import annotations

from typing import Any

import optree

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.tree.chart import Entry
from parallax.tree.outside import is_leaf, join
from parallax.tree.places import Survey

__all__ = ["Around", "containers", "entry_at", "put"]


class Around(Entry):
    """The place of one container outside of any module.

    Its ``item`` is -1, and its ``keys`` lead to it from the root of the tree.

    Attributes:
        value: the container that stands there.
    """

    __slots__ = ("value",)

    def __init__(self, path: str, value: Any, start: int, keys: tuple[Any, ...]) -> None:
        self.path = path
        self.node: Any = None
        self.cls = type(value)
        self.role = ""
        self.leaf = -1
        self.start = start
        self.stop = start
        self.item = -1
        self.keys = keys
        self.value = value

    @property
    def is_module(self) -> bool:
        """False: a container is not a module."""
        return False

    def holds(self, other: Entry) -> bool:
        """Whether the other place is this one or lies below it."""
        if other.item < 0:
            return self.keys == other.keys[: len(self.keys)]
        return self.start <= other.start and other.stop <= self.stop


def containers(tree: Any, survey: Survey) -> list[Around]:
    """The containers of a tree outside of its modules, in preorder; none while dynamo traces.

    Args:
        tree: the tree, or one with the same items.
        survey: the survey of the tree.
    """
    if survey.spec.outer is None or dynamo.is_compiling():
        return []
    sizes = [0] * len(survey.spec.parts)
    for entry in survey.chart.entries:
        if not entry.keys:  # an outermost module or leaf
            sizes[entry.item] = entry.stop - entry.start
    found: list[Around] = []
    places = iter(sizes)

    def walk(node: Any, path: str, start: int, keys: tuple[Any, ...]) -> int:
        if is_module(node) or is_leaf(node):
            return start + next(places)
        around = Around(path, node, start, keys)
        found.append(around)
        below = optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE)
        for key, child in zip(below[2], below[0], strict=True):
            start = walk(child, join(path, str(key)), start, (*keys, key))
        around.stop = start
        return start

    walk(tree, "", 0, ())
    return found


def entry_at(survey: Survey, path: str) -> Entry:
    """The entry at a path that there is."""
    found = survey.at(path)
    return found or next(one for one in containers(survey.tree, survey) if one.path == path)


def put(tree: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value in the place of one of its containers."""
    if not keys:
        return value
    children, metadata, entries, unflatten = optree.tree_flatten_one_level(
        tree, none_is_leaf=True, namespace=NAMESPACE
    )
    place = list(entries).index(keys[0])
    below = list(children)
    below[place] = put(below[place], keys[1:], value)
    return unflatten(metadata, below)
