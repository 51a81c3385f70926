"""Functions of a tree that return some of its nodes, which are then found in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallax._compat import dynamo
from parallax.tree import core
from parallax.tree.around import Around, containers
from parallax.tree.chart import Chart, Entry
from parallax.tree.places import Survey, follow

__all__ = ["by_lambda"]


class _Marks:
    """Trees of one structure with its entries as leaves, for a user's lambda to walk.

    Holes are entries, too, unless ``leaves`` says which places are holes.
    """

    def __init__(self, chart: Chart, leaves: Sequence[Any] | None = None) -> None:
        self.chart = chart
        self.items: list[Any] = []
        marks: list[Entry | None] = list(chart.first)
        if leaves is not None:
            marks = [
                None if held is None else mark for mark, held in zip(marks, leaves, strict=True)
            ]
        stop = 0
        for part in chart.parts:
            lone = core.TreeSpec(None, (part,), (None,))
            start, stop = stop, stop + lone.num_leaves
            self.items.append(lone.build(marks[start:stop]))
        self._entries: dict[int, tuple[Any, Entry]] = {}

    def entry_of(self, node: Any) -> Entry | None:
        """The entry of a node or leaf of such a tree; ``None`` for anything else."""
        if isinstance(node, Entry):
            return node
        if isinstance(node, tuple) and not node:
            return None  # every empty tuple is one object
        if dynamo.is_compiling():
            alike = [(other, e) for other, e in self._pairs() if type(other) is type(node)]
            found = [entry for other, entry in alike if _is(other, node)]
            return found[0] if found else None
        if not self._entries:  # beside the nodes themselves, so that no id is given again
            self._entries = {id(pair[0]): pair for pair in reversed(self._pairs())}
        return self._entries.get(id(node), (None, None))[1]

    def _pairs(self) -> list[tuple[Any, Entry]]:
        """Every node of the trees with its entry."""
        entries = [entry for entry in self.chart.entries if entry.cls is not None]
        return [(follow(self.items[entry.item], entry.keys), entry) for entry in entries]


def by_lambda(survey: Survey, where: Callable[[Any], Any]) -> tuple[list[Entry], bool]:
    """The nodes that a lambda returns of the tree itself; in a trace, of a tree of marks."""
    if dynamo.is_compiling():
        return _by_marks(survey, where)
    # Containers are built anew, for the lambda might write into a list of the caller.
    shown = core.with_items(survey.spec, list(survey.items))
    known = _Nodes(survey, containers(shown, survey))
    result = _called(where, shown)
    marked: list[Any] = []

    def entry_of(node: Any, place: int) -> Entry:
        found = known.entries_of(node)
        if len(found) == 1:
            return found[0]
        if not marked:  # equal holes or numbers are one object; marks are distinct objects
            marked.extend(_entries_of_marks(survey, where))
        told = marked[place] if place < len(marked) else None
        return _one(survey, node, told if told in found else None)

    single = not isinstance(result, (list, tuple)) or bool(known.entries_of(result))
    items = [result] if single else result
    found = [entry_of(node, place) for place, node in enumerate(items)]
    return survey.chart.distinct(found), single


def _one(survey: Survey, node: Any, entry: Entry | None) -> Entry:
    if entry is not None:
        return entry
    if node is None:
        raise LookupError(
            f"select: the function returned None, and which hole of {type(survey.tree).__name__} "
            f"that is cannot be told. Name it by its path, such as 'layers.0.bias'"
        )
    raise LookupError(
        f"select: the function returned {node!r}, which is neither a leaf, a module nor a "
        f"container of {type(survey.tree).__name__}. Constants are changed by "
        f"module.replace(name=...)"
    )


def _called(where: Callable[[Any], Any], shown: Any) -> Any:
    try:
        return where(shown)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"select: a function of one argument gets the tree and returns nodes of it: {error}. "
            f"A predicate takes two: lambda path, leaf: leaf.ndim == 2"
        ) from error


class _Nodes:
    """The nodes and leaves of a tree by identity."""

    def __init__(self, survey: Survey, around: list[Around]) -> None:
        self._survey = survey
        self._around = around
        self._nodes: dict[int, list[Entry]] | None = None

    def entries_of(self, node: Any) -> list[Entry]:
        """The entries of all places that hold this object; several for a hole, for example."""
        survey = self._survey
        if isinstance(node, tuple) and not node:
            return []  # every empty tuple is one object
        held = survey.leaves
        found = [survey.chart.first[k] for k, leaf in enumerate(held) if leaf is node]
        if found or node is None:
            return found
        if self._nodes is None:
            entries = [entry for entry in survey.chart.entries if entry.cls is not None]
            pairs: list[tuple[Entry, Any]] = [
                *zip(self._around, [a.value for a in self._around], strict=True)
            ]
            pairs += [*zip(entries, survey.values(entries), strict=True)]
            nodes: dict[int, list[Entry]] = {}
            for entry, value in pairs:
                nodes.setdefault(id(value), []).append(entry)
            self._nodes = nodes
        return survey.chart.distinct(self._nodes.get(id(node), []))


def _marked(survey: Survey, where: Callable[[Any], Any]) -> tuple[Any, _Marks]:
    """What a lambda returns when it is given a tree of marks in place of leaves."""
    chart = survey.chart
    # In a trace its trees are made anew, for they are no constants.
    marks = _Marks(chart) if dynamo.is_compiling() else chart.remember(_Marks)
    return _called(where, core.with_items(survey.spec, list(marks.items))), marks


def _by_marks(survey: Survey, where: Callable[[Any], Any]) -> tuple[list[Entry], bool]:
    """As ``by_lambda`` in a trace: values are unknown, and a lambda sees only holes and marks."""
    marks = _Marks(survey.chart, survey.leaves)
    result = _called(where, core.with_items(survey.spec, list(marks.items)))
    single = not isinstance(result, list) and (
        not isinstance(result, tuple) or marks.entry_of(result) is not None
    )
    nodes = [result] if single else list(result)
    if any([node is None for node in nodes]):  # which hole?
        told = _entries_of_marks(survey, where)
        pairs = zip(nodes, told, strict=False)  # ``told`` may be empty
        nodes = [entry if node is None else node for node, entry in pairs]
    return survey.chart.distinct([_one(survey, n, marks.entry_of(n)) for n in nodes]), single


def _entries_of_marks(survey: Survey, where: Callable[[Any], Any]) -> list[Entry | None]:
    """The entries that a lambda returns of marks; empty if it needs values and so raises."""
    try:
        result, marks = _marked(survey, where)
    except Exception:  # a function of tensors may raise anything when it gets marks
        return []
    single = not isinstance(result, (list, tuple)) or marks.entry_of(result) is not None
    return [marks.entry_of(node) for node in ([result] if single else result)]


def _is(one: Any, two: Any) -> bool:
    """Whether two nodes are one object; dynamo knows that of tuples by their items only."""
    if isinstance(one, tuple):
        same_length = type(one) is type(two) and len(one) == len(two)
        return same_length and all(_is(a, b) for a, b in zip(one, two, strict=True))
    return one is two
