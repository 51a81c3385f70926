"""Why a call does not fit the graphs there are, in the words of the module tree."""

from __future__ import annotations

from typing import Any

from parallax.compiler.graph import Graph
from parallax.compiler.packing import paths_of
from parallax.core.structure import Structure
from parallax.tree.align import difference

__all__ = ["family_of", "reason"]


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
            return _changed(path, theirs[path], structure)
    return "the metadata of a registered node differs"


def _changed(path: str, one: Structure, two: Structure) -> str:
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
    for (keys, a), (_, b) in zip(one.walk(), two.walk(), strict=True):
        if type(a) is Structure and a.local.note != b.local.note:
            place = ".".join([path, *map(str, keys)])
            return f"the mode or a frozen mark of {place} was {a.local.note} and is {b.local.note}"
    return f"the structure of {path} changed"
