"""Changes notes, which travel with a tree and are not compared: paths, copies, frozen marks.

Modes are distributed in ``tree.modes``, and leaves are frozen in ``tree.freeze``.
"""

from __future__ import annotations

from typing import Any

from parallax._compat.opaque import real
from parallax.core.description import note_of
from parallax.core.entries import local_of
from parallax.core.structure import Structure, structure_of

__all__ = ["addressed", "carry_note", "joined", "note_of", "split_copy"]


@real
def addressed(structure: Structure, root: str = "") -> Structure:
    """The structure with every module's path, below that of the root."""
    found = structure.variants.get(("addressed", root))
    if found is None:
        paths = [path for path, _, node in structure.walk() if type(node) is Structure]
        found = structure.variants["addressed", root] = structure.renote(
            lambda index, node: node.note._replace(path=joined(root, *paths[index]))
        )
    return found


def joined(*parts: Any) -> str:
    """The parts of a path, joined by dots."""
    return ".".join([str(part) for part in parts if part != ""])


@real
def split_copy(structure: Structure, k: int) -> Structure:
    """The structure of the ``k``-th copy, which has other random numbers and the same paths."""
    found = structure.variants.get(("split", k))
    if found is None:
        found = structure.variants["split", k] = structure.renote(
            lambda _, node: node.note._replace(copy=f"{node.note.copy}#{k}")
        )
    return found


@real
def carry_note(old: Structure, new: Structure, changed: tuple[str, ...]) -> Structure:
    """``new`` with the note of ``old``; marks on the leaves of changed fields are dropped."""
    note = old.note
    if note.frozen:
        kept: list[int] = []
        begin = {key: start for key, start, _ in new.below}
        for key, start, child in old.below:
            if key not in changed:
                stop = start + child.n_places
                kept += [k - start + begin[key] for k in note.frozen if start <= k < stop]
        note = note._replace(frozen=tuple(kept))
    local = local_of(new.cls, new.local.constants, new.local.key, note)
    return structure_of(local, new.children, new.expand)
