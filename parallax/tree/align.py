"""Whether two trees fit together, and where they first differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parallax._compat.opaque import real
from parallax.core.entries import Leaf, Static
from parallax.core.module_structure import leaves_of, spec_of
from parallax.core.nodes import is_module
from parallax.core.structure import Structure

__all__ = ["align", "align_places", "difference", "misfit"]


def align(structure: Structure, other: Any, path: str = "") -> Sequence[Any]:
    """The leaves of ``other`` in the order of the unique leaves of ``structure``.

    Args:
        structure: the structure of the first tree.
        other: a module that should have its skeleton.
        path: where the module stands in the whole tree, for error messages.

    Returns:
        One leaf or hole per unique leaf of ``structure``.

    Raises:
        ValueError: if the skeletons differ, or ``other`` has two values for one tied leaf.
    """
    leaves, expand = _fitting(structure, other, path)
    if expand == structure.expand:
        return leaves
    if expand is not None:
        leaves = [leaves[k] for k in expand]
    for place, first in structure.ties:
        if leaves[place] is not leaves[first]:
            raise ValueError(_untied(structure.place_paths[first], structure.place_paths[place]))
    return [leaves[k] for k in structure.first]


def _fitting(
    structure: Structure, other: Any, path: str
) -> tuple[Sequence[Any], tuple[int, ...] | None]:
    """The leaves of ``other``, whose skeleton fits but for ties, and which of them is where."""
    if not is_module(other):
        raise ValueError(_no_module(path, structure.cls.__name__, other))
    if spec_of(other) is not structure and spec_of(other).skeleton != structure.skeleton:
        found = difference(structure, spec_of(other))
        if found is not None:
            below, expected, got = found
            top = path or structure.cls.__name__
            raise ValueError(misfit(f"{top}.{below}" if below else top, expected, got))
    return leaves_of(other), spec_of(other).expand


def align_places(structure: Structure, other: Any, path: str = "") -> tuple[list[Any], list[int]]:
    """As ``align``, ties aside.

    Returns:
        What ``other`` has in each place, and for each place the index of its own unique leaf.

    Raises:
        ValueError: if classes or constants differ; the message names the first path.
    """
    leaves, expand = _fitting(structure, other, path)
    return (
        (list(leaves), [*range(len(leaves))])
        if expand is None
        else ([leaves[k] for k in expand], [*expand])
    )


def _untied(one: str, two: str) -> str:
    return (
        f"the first tree has one tied leaf at {one} and {two}, and the other tree has a "
        f"different value in each. Sum them onto the tie first: other = tree.tie(first, other)"
    )


def misfit(path: str, expected: str, got: str) -> str:
    """The message for two trees of different skeletons."""
    where = path or "the root"
    return (
        f"the trees do not fit together: at {where} the first has {expected}, the other has {got}"
    )


def _no_module(path: str, name: str, other: Any) -> str:
    hint = ". Give a tree of the first one's structure, such as func.grad and tree.map return"
    if other is None:
        hint = "; pass the whole tree, with None where there is no value"
    return misfit(path, f"a {name}", f"a {type(other).__name__}{hint}")


@real
def difference(structure: Structure, other: Structure) -> tuple[str, str, str] | None:
    """Where two skeletons first differ, ties aside.

    Args:
        structure: a structure.
        other: another.

    Returns:
        The dotted path and what each has there; ``None`` if nowhere.
    """
    stack: list[tuple[str, Any, Any]] = [("", structure, other)]
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
            for (key, _, c), d in reversed(list(zip(a.below, b.children, strict=True)))
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
    again = defined_again(a.cls, b.cls)
    return path, _describe(a), f"{_describe(b)}{again}"


def defined_again(one: Any, two: Any) -> str:
    """A hint for two classes of one name, as a notebook cell that runs twice defines them."""
    if one is two or (one.__module__, one.__qualname__) != (two.__module__, two.__qualname__):
        return ""
    return (
        f" of another class of that name: {two.__qualname__} was defined again after one of the "
        f"trees was made. Construct both anew from the class as it is now; "
        f"bridge.load_state_dict(new, bridge.state_dict(old)) keeps the values of an old one"
    )


def _describe(entry: Any) -> str:
    if type(entry) is Leaf:
        return "a leaf"
    if type(entry) is Static:
        return f"the constant {entry.value!r}"
    if hasattr(entry.cls, "__layout__"):
        return f"a {entry.cls.__qualname__}"
    return f"a {entry.cls.__name__} of {list(entry.keys())}"
