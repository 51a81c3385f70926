"""Frozen marks: which parameters are not trained, as notes on the modules that hold them."""

from __future__ import annotations

from typing import Any

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.core.structure import Note, Structure
from parallax.tree import core
from parallax.tree.chart import Chart, Entry
from parallax.tree.places import Survey, follow

__all__ = ["marked"]


def marked(survey: Survey, chosen: tuple[int, ...], frozen: bool) -> Any:
    """The tree with some unique leaves marked frozen, or not.

    Every place of a tied leaf is marked, so that a module taken out of the tree stays frozen.

    Raises:
        TypeError: if a chosen leaf belongs to no module, which is where marks are kept.
    """
    if dynamo.is_compiling():
        return _marked_in_trace(survey, _own(survey.chart, chosen), frozen)
    spec = survey.spec
    parts = survey.chart.remember(_renoted, chosen, frozen)
    return core.TreeSpec(spec.outer, parts, spec.rngs).build(survey.leaves)


def _renoted(chart: Chart, chosen: tuple[int, ...], frozen: bool) -> tuple[Any, ...]:
    """The structures of the outermost modules with other marks."""
    own = _own(chart, chosen)
    return tuple(
        part and part.renote(lambda k, n, own=own[item]: _changed(n.local.note, own[k], frozen))
        for item, part in enumerate(chart.spec.parts)
    )


def _own(chart: Chart, chosen: tuple[int, ...]) -> list[list[list[int]]]:
    """For each node of each module tree, in preorder, the offsets of its own chosen parameters."""
    for index in chosen:
        entry = chart.first[index]
        if chart.spec.parts[entry.item] is None:
            raise TypeError(
                f"{entry.path or 'the tree'} belongs to no module, and frozen is a mark on a "
                f"module's parameter. Hold it in a Module, or leave it out with tree.partition"
            )
    own: list[dict[Entry | None, list[int]]] = [{} for _ in chart.spec.parts]
    wanted = set(chosen)
    for entry in chart.entries:
        if entry.cls is not None:
            own[entry.item][entry] = []
        elif entry.role == "parameter" and entry.leaf in wanted:
            owner = chart.owners[entry.start]
            assert owner is not None
            own[entry.item][owner].append(entry.start - owner.start)
    return [list(nodes.values()) for nodes in own]


def _marked_in_trace(survey: Survey, own: list[list[list[int]]], frozen: bool) -> Any:
    """As above, on modules made anew: nothing outside of the trace may be written."""
    made = survey.spec.build(survey.leaves)
    for number, (_, item) in enumerate(core.items_with_paths(made)):
        here = [e for e in survey.chart.entries if e.item == number and e.cls is not None]
        specs = _specs(item, own[number], frozen) if is_module(item) else []
        for entry, spec in zip(here, specs):  # noqa: B905  # dynamo traces no strict=
            if entry.is_module:
                object.__setattr__(follow(item, entry.keys), "_spec", spec)
    return made


def _specs(module: Any, own: list[list[int]], frozen: bool) -> list[Any]:
    if type(module._spec) is Structure:
        return list(
            module._spec.renote(lambda k, n: _changed(n.local.note, own[k], frozen)).nodes()
        )
    raise RuntimeError(
        f"cannot freeze or unfreeze a {type(module).__name__} that was constructed or replaced in "
        f"the function that is being compiled; do it outside of that function"
    )


def _changed(note: Note, own: list[int], frozen: bool) -> Note:
    kept = [offset for offset in note.frozen if offset not in own]
    return note._replace(frozen=tuple(sorted([*kept, *own] if frozen else kept)))
