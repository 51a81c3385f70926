"""Why no graph fits a call, told by paths in the module tree."""

from __future__ import annotations

from typing import Any

from parallax.compiler.graph import Graph
from parallax.compiler.packing import paths_of
from parallax.core.entries import Note
from parallax.core.structure import Structure
from parallax.tree.align import difference

__all__ = ["changed", "family_of", "reason"]


_NOTES = {"frozen": "frozen marks", "path": "path (by which a key is derived)"}


def family_of(tokens: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the graphs that are counted together have in common: classes, not constants."""
    return tuple([token.shape if type(token) is Structure else token for token in tokens])


def reason(before: list[Graph], tokens: tuple[Any, ...], items: list[Any], names: list[str]) -> str:
    """What differs between a call and the last graph that was made for such arguments."""
    paths, modules = paths_of(tokens, names)
    for graph in reversed(before):
        if graph.tokens == tokens:
            return graph.why_not(items, paths)
    theirs = paths_of(before[-1].tokens, names)[1]
    for path, structure in modules.items():
        if structure != theirs[path]:
            return changed(path, theirs[path], structure)
    return "the metadata of a registered node differs"


def changed(path: str, one: Structure, two: Structure) -> str:
    """What differs between two structures of an argument."""
    found = difference(one, two)
    if found is not None:
        where, before, now = found
        return (
            f"{path}.{where} was {before} and is {now}"
            if where
            else f"{path} was {before}, is {now}"
        )
    if one.expand != two.expand:
        return f"other leaves of {path} are tied"
    for (keys, _, a), (_, _, b) in zip(one.walk(), two.walk(), strict=True):
        if type(a) is Structure and a.local.note != b.local.note:
            place = ".".join([path, *map(str, keys)])
            pairs = zip(Note._fields, a.local.note, b.local.note, strict=True)
            name, was, now = next((name, was, now) for name, was, now in pairs if was != now)
            return f"the {_NOTES.get(name, name)} of {place} was {was!r} and is {now!r}"
    return f"the structure of {path} changed"
