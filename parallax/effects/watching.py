"""Watched modules: their calls are told to what their tree holds in the place of its rng.

Which modules are watched is a note: it travels with a tree and is not compared, so that gradients
and optimizer states fit a watched tree. Its instances are of a subclass, made once for each class,
whose call is ``forward`` and then a word to the watcher. All other classes, modules and calls are
as they are.

A lifted ``nn.Module`` has no such subclass: its private copy has hooks (``bridge.skeleton``).
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from parallax._compat.opaque import real
from parallax.core import registry
from parallax.core.entries import Note
from parallax.core.metaclass import ModuleMeta, place_init, writes_call
from parallax.core.module_structure import note_of
from parallax.core.notes import joined
from parallax.core.structure import Structure, derived

__all__ = ["unwatch", "watch", "watched_paths"]

_making = threading.Lock()


@real
@derived
def watch(structure: Structure, paths: tuple[str, ...]) -> Structure:
    """The structure in which the modules at these paths are watched, beside those that are.

    Args:
        structure: of a module.
        paths: dotted, from there.
    """
    meant = set(paths)

    def note(path: tuple[Any, ...], node: Structure) -> Note:
        if joined(*path) not in meant:
            return node.note
        _make_watching(node.cls)
        return node.note._replace(watched=True)

    return structure.renote(note)


@real
def unwatch(structure: Structure) -> Structure:
    """The structure in which no module is watched."""
    if not structure.watched:
        return structure
    return structure.renote(lambda _, node: node.note._replace(watched=False))


def watched_paths(structure: Structure) -> list[tuple[Any, ...]]:
    """Where the watched modules of a structure stand."""
    if not structure.watched:
        return []
    nodes = [(path, node) for path, _, node in structure.walk() if type(node) is Structure]
    return [path for path, node in nodes if node.local.note.watched]


class _Watching:
    """What a class of watched modules has before the class itself among its bases."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        """Nothing: a subclass that only watches is not announced to the user's class."""


def _make_watching(cls: Any) -> None:
    """Gives a class its subclass of watched modules, unless it has one or tells by itself."""
    layout = cls.__layout__
    if layout.watching is not None or hasattr(cls, "__tells__"):
        return
    with _making:
        if layout.watching is None:
            made = _watching(cls)
            registry.register_module(layout, made, "watched", made)
            layout.watching = made


def _watching(cls: Any) -> Any:
    @functools.wraps(cls.__call__)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        watcher = self._rng
        collection = getattr(watcher, "collection", None)
        if collection is None:  # nobody watches this instance any more
            return cls.__call__(self, *args, **kwargs)
        recorder = collection.recorder
        if recorder is not None:  # the usual case, with less
            out = cls.__call__(self, *args, **kwargs)
            path = note_of(self).path or ""
            if path in recorder.paths:
                recorder.returned(path, args, kwargs, out, collection)
            return out
        if collection.enters:
            watcher.called((self,))
        call = cls.__call__  # asked for now, for forward may have been set on the class since
        if collection.surrounds:
            call = watcher.surrounded((self,), call)
        out = call(self, *args, **kwargs)
        return watcher.returned((self,), args, kwargs, out)

    @functools.wraps(cls.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any([writes_call(base) for base in cls.__mro__]):  # a part of what a user's call runs
            return cls.forward(self, *args, **kwargs)
        return watched(self, *args, **kwargs)

    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__call__": watched,
        "forward": forward,
    }
    meta: Any = type(cls)
    # Past the metaclass, which would find fields of its own for it: it has those of the class.
    above: Any = super(ModuleMeta, meta)
    made = above.__new__(meta, cls.__name__, (_Watching, cls), namespace)
    place_init(made)
    return made
