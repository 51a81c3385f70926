"""Changes notes, which travel with a tree and are not compared: paths, copies, frozen marks.

Modes are distributed in ``tree.modes``, and leaves are frozen in ``tree.freeze``.
"""

from __future__ import annotations

from typing import Any

from parallax._compat.opaque import real
from parallax.core.entries import local_of
from parallax.core.module_structure import note_of
from parallax.core.structure import Structure, derived, structure_of

__all__ = ["addressed", "carry_note", "joined", "note_of", "split_copy"]


@real
@derived
def addressed(structure: Structure, root: str = "") -> Structure:
    """The structure with every module's path, below that of the root."""
    return structure.renote(lambda path, node: node.note._replace(path=joined(root, *path)))


def joined(*parts: Any) -> str:
    """The parts of a path, joined by dots."""
    return ".".join([str(part) for part in parts if part != ""])


@real
@derived
def split_copy(structure: Structure, k: int) -> Structure:
    """The structure of the ``k``-th copy, which has other random numbers and the same paths."""
    return structure.renote(lambda _, node: node.note._replace(copy=f"{node.note.copy}#{k}"))


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
