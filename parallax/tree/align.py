"""Whether two trees fit together, and where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallax import tracing
from parallax.nodes import is_module
from parallax.registry import flatten_module
from parallax.structure import Leaf, Static, Structure

__all__ = ["align", "difference"]


def align(part: Any, other: Any) -> Sequence[Any]:
    """The leaves of ``other`` in the order of the unique leaves of ``part``.

    Args:
        part: the structure of the first tree (its outline while tracing).
        other: a module that should have its skeleton.

    Returns:
        One leaf or hole per unique leaf of ``part``.

    Raises:
        ValueError: if the skeletons differ, or ``other`` has two values for one tied leaf.
    """
    if type(part) is tracing.Outline:
        return _align_outline(part, other)
    if not is_module(other):
        raise ValueError(_no_module(part.cls.__name__, other))
    leaves, theirs = flatten_module(other)
    if theirs is part or theirs.skeleton == part.skeleton:
        return leaves
    found = difference(part, theirs)
    if found is not None:
        path, expected, got = found
        where = f"{part.cls.__name__}.{path}" if path else part.cls.__name__
        raise ValueError(
            f"the trees do not fit together: at {where} the first has {expected}, "
            f"the other has {got}"
        )
    places = leaves if theirs.expand is None else [leaves[k] for k in theirs.expand]
    return _unique(places, part.expand, part.first, part.place_paths)


def _unique(
    places: Sequence[Any],
    expand: tuple[int, ...] | None,
    first: Sequence[int],
    paths: Sequence[str] | None,
) -> Sequence[Any]:
    """The unique leaves among ``places``, which must agree wherever the first tree has a tie."""
    if expand is None:
        return places
    for place, index in enumerate(expand):
        if places[place] is not places[first[index]]:
            one, two = (paths[first[index]], paths[place]) if paths else ("one place", "another")
            raise ValueError(
                f"the first tree has one tied leaf at {one} and {two}, and the other tree has a "
                f"different value in each. Sum them onto the tie first: other = tree.tie(first, other)"
            )
    return [places[k] for k in first]


def _align_outline(part: Any, other: Any) -> Sequence[Any]:
    if not is_module(other):
        raise ValueError(_no_module("module", other))
    leaves, theirs = tracing.take_apart(other)
    if part.skeleton != theirs.skeleton:
        raise ValueError("the trees do not fit together: their classes or constants differ")
    if part.expand == theirs.expand:
        return leaves
    places = leaves if theirs.expand is None else [leaves[k] for k in theirs.expand]
    first: list[int] = []
    for place, index in enumerate(part.expand or ()):
        if index == len(first):
            first.append(place)
    return _unique(places, part.expand, first, None)


def _no_module(name: str, other: Any) -> str:
    hint = "; pass the whole tree, with None where there is no value" if other is None else ""
    return f"the trees do not fit together: the first is a {name}, the other {type(other).__name__}{hint}"


def difference(one: Structure, two: Structure) -> tuple[str, str, str] | None:
    """Where two skeletons first differ, ties aside.

    Args:
        one: a structure.
        two: another.

    Returns:
        The dotted path and what each has there; ``None`` if nowhere.
    """
    stack: list[tuple[str, Any, Any]] = [("", one, two)]
    while stack:
        path, a, b = stack.pop()
        if a is b or (type(a) is Leaf and type(b) is Leaf):
            continue
        if type(a) is not Structure or type(b) is not Structure:
            if a != b:
                return path, _describe(a), _describe(b)
            continue
        if not a.local.fits(b.local) or len(a.children) != len(b.children):
            return _differing_field(path, a, b)
        stack += [
            (f"{path}.{key}" if path else str(key), c, d)
            for key, c, d in reversed(list(zip(a.keys(), a.children, b.children, strict=True)))
        ]
    return None


def _differing_field(path: str, a: Structure, b: Structure) -> tuple[str, str, str]:
    if a.cls is b.cls and hasattr(a.cls, "__layout__"):
        names = a.cls.__layout__.constants
        keys = zip(names, a.local.key, b.local.key, strict=True)
        for index, (name, mine, theirs) in enumerate(keys):
            if mine != theirs:
                where = f"{path}.{name}" if path else name
                values = a.local.constants[index], b.local.constants[index]
                return where, f"the constant {values[0]!r}", f"the constant {values[1]!r}"
    return path, _describe(a), _describe(b)


def _describe(entry: Any) -> str:
    if type(entry) is Leaf:
        return "a leaf"
    if type(entry) is Static:
        return f"the constant {entry.value!r}"
    if hasattr(entry.cls, "__layout__"):
        return f"a {entry.cls.__qualname__}"
    return f"a {entry.cls.__name__} of {list(entry.keys())}"


