"""Changing what travels with a tree and is not compared: modes, random streams, frozen marks."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from parallax import random
from parallax.structure import Structure, local_of, structure_of

__all__ = ["carry_note", "distribute", "split_copy"]


def distribute(structure: Structure, mode: str) -> Structure:
    """The structure with ``mode`` everywhere and a random stream per module, by its path."""
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    found = structure.variants.get(mode)
    if found is None:
        paths = [path for path, node in structure.walk() if type(node) is Structure]
        found = structure.renote(
            lambda index, node: node.local.note._replace(
                mode=mode, stream=random.derive(0, "stream", *paths[index])
            )
        )
        structure.variants[mode] = found.variants[mode] = found
    return found


def split_copy(structure: Structure, k: int) -> Structure:
    """The structure with every random stream exchanged for its ``k``-th child."""
    found = structure.variants.get(("split", k))
    if found is None:
        found = structure.renote(
            lambda index, node: node.local.note._replace(
                stream=random.derive(node.local.note.stream or index, "split", k)
            )
        )
        structure.variants["split", k] = found
    return found


def carry_note(old: Structure, new: Structure, changed: Container[Any]) -> Structure:
    """``new`` with the note of ``old``; marks on the leaves of changed fields are dropped."""
    note = old.local.note
    if note.frozen:
        kept: list[int] = []
        begin = dict(zip(new.keys(), new.starts(), strict=True))
        for key, child, start in zip(old.keys(), old.children, old.starts(), strict=True):
            if key not in changed:
                size = child.n_places if type(child) is Structure else 1
                kept += [k - start + begin[key] for k in note.frozen if start <= k < start + size]
        note = note._replace(frozen=tuple(kept))
    local = local_of(new.cls, new.local.constants, new.local.key, note)
    return structure_of(local, new.children, new.expand)
