"""The names that a state dict of ``torch.nn`` has for the nodes and leaves of a tree."""

from __future__ import annotations

from collections import Counter
from typing import Any

from parallax.core.entries import Leaf
from parallax.core.structure import Structure, derived
from parallax.tree.chart import Chart, Entry

__all__ = ["names_of", "names_within", "state_names", "unsaved"]


def state_names(chart: Chart) -> dict[str, Entry]:
    """What stands in a tree by its name in the state dict, where that is not its path."""
    found: dict[str, Entry] = {}
    for item, part in enumerate(chart.parts):
        if part is None:
            continue
        own = [entry for entry in chart.entries if entry.item == item]
        prefix = f"{own[0].path}." if own[0].path else ""
        places, begins = names_within(part)
        leaves = [entry for entry in own if entry.cls is None]
        nodes = [entry for entry in own if entry.cls is not None]
        pairs = [*zip(places, leaves, strict=True)]
        pairs += zip([begin[:-1] for begin in begins], nodes, strict=True)
        for name, entry in pairs:
            if name and prefix + name != entry.path:
                found.setdefault(prefix + name, entry)
    return found


def names_within(node: Structure) -> tuple[list[str], list[str]]:
    """What a state dict calls the places below a node, and the nodes.

    A class whose fields are not called as torch's are defines ``__state_name__``, which takes the
    name below it that its fields give, and its constants, to the name that ``torch.nn`` gives. It
    is also asked for what the names in a node below begin with, with the dot at the end: what
    becomes ``""`` is no module of its own in torch.

    Args:
        node: the structure.

    Returns:
        The name of every place; and for every node, in preorder, what the names in it begin with.
    """
    places: list[str] = []
    begins: list[str] = [""]
    for key, child in zip(node.keys(), node.children, strict=True):
        if type(child) is Structure:
            inner, below = names_within(child)
            places += [f"{key}.{name}" for name in inner]
            begins += [f"{key}.{name}" for name in below]
        elif type(child) is Leaf:
            places.append(str(key))
    cls: Any = node.cls
    rename = getattr(cls, "__state_name__", None)
    if rename is None:
        return places, begins
    constants = dict(zip(cls.__layout__.constants, node.local.constants, strict=True))
    return (
        [rename(name, constants) for name in places],
        ["", *(rename(name, constants) for name in begins[1:])],
    )


@derived
def names_of(structure: Structure) -> tuple[tuple[str, int], ...]:
    """The name of every place in a state dict, with the index of its unique leaf.

    Raises:
        ValueError: if two places have one name, of which a state dict would lose one.
    """
    skipped = unsaved(structure)
    pairs = zip(names_within(structure)[0], structure.leaf_at, strict=True)
    found = tuple([pair for place, pair in enumerate(pairs) if place not in skipped])
    _require_distinct([name for name, _ in found], structure)
    return found


def _require_distinct(names: list[str], structure: Structure) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"two leaves of {structure.cls.__name__} are called {twice!r}, and a state dict would "
            f"lose one. Rename one: a key of a dict, or what __state_name__ returns"
        )


def unsaved(structure: Structure) -> set[int]:
    """The places that a state dict leaves out: buffers of lifted modules that are not persistent.

    Their class defines ``__unsaved__``, which takes its constants to the names of such fields.
    """
    places = set()
    for _, start, node in structure.walk():
        cls: Any = getattr(node, "cls", None)
        if hasattr(cls, "__unsaved__"):
            constants = dict(zip(cls.__layout__.constants, node.local.constants, strict=True))
            names = cls.__unsaved__(constants)
            places |= {start + offset for key, offset, _ in node.below if key in names}
    return places
