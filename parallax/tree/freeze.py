"""Frozen marks: which parameters are not trained, as notes on the modules that hold them."""

from __future__ import annotations

from typing import Any

from parallax._compat import dynamo
from parallax.nodes import is_module
from parallax.structure import Note, Structure
from parallax.tree import core
from parallax.tree.places import Survey, follow

__all__ = ["marked"]


def marked(survey: Survey, chosen: set[int], frozen: bool) -> Any:
    """The tree with some unique leaves marked frozen, or not.

    Every place of a tied leaf is marked, so that a module taken out of the tree stays frozen.

    Raises:
        TypeError: if a chosen leaf belongs to no module, which is where marks are kept.
    """
    for index in chosen:
        entry = survey.first[index]
        if entry.owner < 0:
            raise TypeError(
                f"{entry.path or 'the tree'} belongs to no module, and frozen is a mark on a "
                f"module's parameter. Hold it in a Module, or leave it out with tree.partition"
            )
    own = _own(survey, chosen)
    if dynamo.is_compiling():
        return _marked_in_trace(survey, own, frozen)
    spec = survey.spec
    parts = [
        None if part is None else _renoted(part, own[number], frozen)
        for number, part in enumerate(spec.parts)
    ]
    return core.unflatten(core.TreeSpec(spec.outer, tuple(parts), spec.rngs), survey.leaves)


def _own(survey: Survey, chosen: set[int]) -> list[tuple[tuple[int, ...], ...]]:
    """For each node of each module tree, in preorder, the offsets of its own chosen parameters."""
    nodes: list[dict[int, list[int]]] = [{} for _ in survey.spec.parts]
    for index, entry in enumerate(survey.entries):
        if entry.kind != "leaf":
            nodes[entry.item][index] = []
        elif entry.role == "parameter" and survey.expand[entry.start] in chosen:
            offset = entry.start - survey.entries[entry.owner].start
            nodes[entry.item][entry.owner].append(offset)
    return [tuple([tuple(offsets) for offsets in part.values()]) for part in nodes]


def _renoted(part: Structure, own: tuple[tuple[int, ...], ...], frozen: bool) -> Structure:
    key = ("frozen", own, frozen)
    if key not in part.variants:
        part.variants[key] = part.renote(lambda k, node: _changed(node.local.note, own[k], frozen))
    return part.variants[key]


def _marked_in_trace(survey: Survey, own: list[Any], frozen: bool) -> Any:
    """As above, on modules made anew: nothing outside of the trace may be written."""
    made = core.unflatten(survey.spec, survey.leaves)
    for number, (_, item) in enumerate(core.items_with_paths(made)):
        here = [e for e in survey.entries if e.item == number and e.kind != "leaf"]
        specs = _specs(item, own[number], frozen) if is_module(item) else []
        for entry, spec in zip(here, specs):  # noqa: B905  # dynamo traces no strict=
            if entry.kind == "module":
                object.__setattr__(follow(item, entry.keys), "_spec", spec)
    return made


def _specs(module: Any, own: Any, frozen: bool) -> list[Any]:
    if type(module._spec) is Structure:
        return list(
            module._spec.renote(lambda k, n: _changed(n.local.note, own[k], frozen)).nodes()
        )
    raise RuntimeError(
        f"cannot freeze or unfreeze a {type(module).__name__} that was constructed or replaced in "
        f"the function that is being compiled; do it outside of that function"
    )


def _changed(note: Note, own: tuple[int, ...], frozen: bool) -> Note:
    kept = [offset for offset in note.frozen if offset not in own]
    return note._replace(frozen=tuple(sorted([*kept, *own] if frozen else kept)))
