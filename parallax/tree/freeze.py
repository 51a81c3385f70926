"""Frozen marks: which parameters are not trained, as notes on the modules that hold them."""

from __future__ import annotations

from typing import Any

from parallax._compat import dynamo
from parallax.core.entries import Note
from parallax.core.structure import Structure
from parallax.tree import core
from parallax.tree.chart import Chart
from parallax.tree.places import Survey

__all__ = ["marked", "marked_as"]

Path = tuple[Any, ...]


def marked(survey: Survey, chosen: tuple[int, ...], frozen: bool) -> Any:
    """The tree with some unique leaves marked frozen, or not.

    Every place of a tied leaf is marked, so that a module taken out of the tree stays frozen.

    Raises:
        TypeError: if a chosen leaf belongs to no module, which is where marks are kept.
    """
    spec = survey.spec
    parts = survey.chart.remember(_renoted, chosen, frozen)
    return core.TreeSpec(spec.outer, parts, spec.rngs).build(survey.leaves)


def marked_as(before: Survey, tree: Any) -> Any:
    """A tree with more leaves, in which those are frozen that were before.

    The marks on a module's own leaves are dropped where a field of it is replaced.

    Raises:
        RuntimeError: if a mark was dropped while dynamo traces, which does not know one tensor from
            another.
    """
    if not before.chart.frozen:
        return tree
    after = Survey(tree)
    if len(after.chart.frozen) == len(before.chart.frozen):
        return tree
    if dynamo.is_compiling():
        raise RuntimeError(
            "a container of frozen parameters cannot be added to in compiled code; do that before"
        )
    frozen = {id(before.leaves[k]) for k in before.chart.frozen}
    return marked(after, tuple(k for k, p in enumerate(after.leaves) if id(p) in frozen), True)


def _renoted(chart: Chart, chosen: tuple[int, ...], frozen: bool) -> tuple[Any, ...]:
    """The structures of the outermost modules with other marks."""
    own = _own(chart, chosen)
    return tuple(
        [part and _marks(part, own[item], frozen) for item, part in enumerate(chart.parts)]
    )


def _marks(part: Structure, own: dict[Path, list[int]], frozen: bool) -> Structure:
    return part.renote(lambda path, node: _changed(node.note, own.get(path, []), frozen))


def _own(chart: Chart, chosen: tuple[int, ...]) -> list[dict[Path, list[int]]]:
    """For each module tree, by the path of a node, the offsets of its own chosen parameters."""
    for index in chosen:
        entry = chart.first[index]
        if chart.parts[entry.item] is None:
            raise TypeError(
                f"{entry.path or 'the tree'} belongs to no module, and frozen is a mark on a "
                f"module's parameter. Hold it in a Module, or leave it out with tree.partition"
            )
    own: list[dict[Path, list[int]]] = [{} for _ in chart.parts]
    wanted = set(chosen)
    for entry in chart.entries:
        if entry.role == "parameter" and entry.leaf in wanted:
            owner = chart.owners[entry.start]
            assert owner is not None
            own[entry.item].setdefault(owner.keys, []).append(entry.start - owner.start)
    return own


def _changed(note: Note, own: list[int], frozen: bool) -> Note:
    kept = [offset for offset in note.frozen if offset not in own]
    return note._replace(frozen=tuple(sorted([*kept, *own] if frozen else kept)))
