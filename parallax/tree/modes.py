"""Modes: ``"train"`` and ``"eval"`` are handed to every module of a tree, as notes on them.

A module may stay in eval, as a pretrained part does in a model that is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

from parallax._compat.opaque import real
from parallax.core.entries import Note
from parallax.core.notes import addressed
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure, derived
from parallax.effects import collection
from parallax.random.sources import Source
from parallax.tree import core
from parallax.tree.chart import Chart, Entry
from parallax.tree.places import Survey

__all__ = ["in_mode", "staying", "with_mode"]

T = TypeVar("T")

Place = tuple[int, tuple[Any, ...]]


def in_mode(module: T, mode: str, source: Source | None) -> T:
    """The module in a mode and with an rng: ``Module.train`` and ``Module.eval``."""
    leaves, structure = flatten_module(module)
    held: Any = module._rng  # type: ignore[attr-defined]  # a module
    structure = with_mode(structure, collection.root_of(module), mode)
    return cast(T, unflatten_module(structure, leaves, collection.with_source(held, source)))


@real
@derived
def with_mode(structure: Structure, root: str, mode: str) -> Structure:
    """The structure with every module's path, and a mode in all but those that stay in eval."""
    return addressed(structure, root).renote(
        lambda _, node: node.note if node.note.stays_eval else node.note._replace(mode=mode)
    )


def staying(survey: Survey, entries: Iterable[Entry], stays: bool) -> Any:
    """The tree whose modules at or below some entries stay in eval, or are in train again.

    A module that stands in several places is one thing: it is marked in each of them.

    Raises:
        TypeError: if an entry holds no module.
    """
    chosen = tuple([(entry.path, tuple(_places(survey.chart, entry))) for entry in entries])
    parts = survey.chart.remember(_renoted, chosen, stays)
    spec = survey.spec
    return core.TreeSpec(spec.outer, parts, spec.rngs).build(survey.leaves)


def _places(chart: Chart, entry: Entry) -> list[Place]:
    """An entry by its keys; a container outside of modules by the entries that it holds."""
    if entry.item >= 0:
        return [(entry.item, entry.keys)]
    begin = f"{entry.path}." if entry.path else ""
    outermost = [other for other in chart.entries if not other.keys]
    held = [other for other in outermost if entry.holds(other)]
    return [(other.item, ()) for other in held if other.path.startswith(begin)]


def _renoted(
    chart: Chart, chosen: tuple[tuple[str, tuple[Place, ...]], ...], stays: bool
) -> tuple[Any, ...]:
    """The structures of the outermost modules with other notes."""
    modules = [entry for entry in chart.entries if entry.is_module]
    meant: set[Place] = set()
    for path, places in chosen:
        found = [entry for entry in modules if _at_or_below(entry, set(places))]
        if not found:
            raise TypeError(_no_module(chart, path))
        meant |= {(twin.item, twin.keys) for entry in found for twin in chart.twins(entry)}
    return tuple(
        [part and _marks(part, item, meant, stays) for item, part in enumerate(chart.parts)]
    )


def _marks(part: Structure, item: int, meant: set[Place], stays: bool) -> Structure:
    mode = "eval" if stays else "train"

    def change(path: tuple[Any, ...], node: Structure) -> Note:
        note = node.note
        return note._replace(mode=mode, stays_eval=stays) if (item, path) in meant else note

    return part.renote(change)


def _at_or_below(entry: Entry, places: set[Place]) -> bool:
    keys = entry.keys
    return any((entry.item, keys[:depth]) in places for depth in range(len(keys) + 1))


def _no_module(chart: Chart, path: str) -> str:
    paths = [entry.path for entry in chart.entries if entry.is_module]
    around = [other for other in paths if not other or path.startswith(f"{other}.")]
    where = f"Write tree.select(tree, {around[-1]!r}).eval()" if around else "Select a module"
    return f"{path or 'the tree'} holds no module, and a mode belongs to a module. {where}"
