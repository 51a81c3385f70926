"""Changing what travels with a tree and is not compared: modes, paths, frozen marks."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from parallax.core import tracing
from parallax.core.layout import TRACED
from parallax.core.structure import PLAIN, Local, Note, Structure, local_of, structure_of

__all__ = [
    "addressed",
    "carry_note",
    "distribute",
    "joined",
    "note_of",
    "split_copy",
    "traced",
    "traced_copy",
    "traced_mode",
    "traced_note",
]


def distribute(structure: Structure, mode: str, root: str = "") -> Structure:
    """The structure with ``mode`` everywhere and every module's path, which begins at ``root``."""
    if mode not in ("train", "eval"):
        raise ValueError(f"mode must be 'train' or 'eval', got {mode!r}")
    found = structure.variants.get((mode, root))
    if found is None:
        found = addressed(structure, root)
        found = found.renote(lambda _, node: node.local.note._replace(mode=mode))
        structure.variants[mode, root] = found.variants[mode, root] = found
    return found


def addressed(structure: Structure, root: str = "") -> Structure:
    """The structure with every module's path, which begins at ``root``."""
    found = structure.variants.get(("addressed", root))
    if found is None:
        paths = [path for path, node in structure.walk() if type(node) is Structure]
        found = structure.renote(
            lambda index, node: node.local.note._replace(path=joined(root, *paths[index]))
        )
        structure.variants["addressed", root] = found.variants["addressed", root] = found
    return found


def joined(*parts: Any) -> str:
    """A dotted path."""
    return ".".join([str(part) for part in parts if part != ""])


def split_copy(structure: Structure, k: int) -> Structure:
    """The structure of the ``k``-th copy: other random numbers, the same paths."""
    found = structure.variants.get(("split", k))
    if found is None:
        found = structure.renote(
            lambda index, node: node.local.note._replace(copy=f"{node.local.note.copy}#{k}")
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


def note_of(module: Any) -> Note:
    """The note of a module, whatever made it."""
    spec = module._spec
    if type(spec) is Structure:
        return spec.local.note
    return spec.note if type(spec) is Local else spec if type(spec) is Note else PLAIN


def traced(module: Any, change: Callable[[str, Note], Note], rng: Any) -> Any:
    """While dynamo traces: the module with another rng and other notes.

    Args:
        module: a module.
        change: given the dotted path of a module below and its note, returns its new note.
        rng: what the new modules hold.

    Returns:
        A module whose structure is found when eager code asks for it.
    """
    leaves, outline = tracing.take_apart(module)
    made = tracing.rebuild(outline, leaves, rng)
    for path, node in tracing.modules(made):
        object.__setattr__(node, "_spec", _traced_local(node, change(path, note_of(node))))
    return made


def traced_mode(module: Any, mode: str, root: str, rng: Any) -> Any:
    """What ``distribute`` is for, while dynamo traces."""
    return traced(module, lambda path, n: n._replace(mode=mode, path=joined(root, path)), rng)


def traced_copy(module: Any, k: int) -> Any:
    """What ``split_copy`` is for, while dynamo traces."""
    return traced(module, lambda _, n: n._replace(copy=f"{n.copy}#{k}"), module._rng)


def _traced_local(module: Any, note: Note) -> Local | Note:
    spec: Any = module._spec
    if type(spec) is Structure or type(spec) is Local:
        local: Any = spec.local if type(spec) is Structure else spec
        return Local(local.cls, local.constants, local.key, note)
    return note  # made while tracing: eager code finds the constants and their keys


def traced_note(old: Any, new: Any, changed: Container[Any]) -> Any:
    """As ``carry_note`` while dynamo traces: what ``new`` holds until eager code describes it."""
    note = note_of(old)
    if note == PLAIN:
        return TRACED
    layout = type(old).__layout__
    frozen: list[int] = []
    before = after = 0
    for name, kind in layout.kinds.items():
        size = tracing.count_places(getattr(old, name), kind)
        if name not in changed:
            frozen += [k - before + after for k in note.frozen if before <= k < before + size]
        before, after = before + size, after + tracing.count_places(getattr(new, name), kind)
    return _traced_local(new, note._replace(frozen=tuple(frozen)))
