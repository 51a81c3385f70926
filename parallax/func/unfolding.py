"""A result taken apart: containers, modules, dataclasses, also trees in the place of leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from parallax._compat import dynamo
from parallax.core.nodes import is_module
from parallax.func.hidden import refuse_hidden
from parallax.tree import core
from parallax.tree.outside import is_leaf, is_plain, join

__all__ = ["Unfolded"]


class Unfolded:
    """A tree of which every leaf is a tensor, a hole or a constant.

    Attributes:
        leaves: the leaves, from left to right.

    Raises:
        TypeError: if something that cannot be taken apart holds a tensor of the running transform.
    """

    __slots__ = ("_inner", "_level", "leaves")

    def __init__(self, tree: Any, what: str, path: str = "") -> None:
        self._level = level = _level_of(tree)
        self._inner: list[Unfolded | None] | None = None
        self.leaves = level.parts
        if all([leaf is None or is_plain(leaf) for leaf in level.parts]):
            return
        inner: list[Unfolded | None] = []
        self.leaves = []
        for place, leaf in enumerate(level.parts):
            if leaf is None or is_plain(leaf):
                below = None
            elif _can_be_opened(leaf):
                below = Unfolded(leaf, what, join(path, level.path(place)))
            else:
                below = None
                if not dynamo.is_compiling():
                    refuse_hidden(leaf, what, join(path, level.path(place)))
            inner.append(below)
            self.leaves += [leaf] if below is None else below.leaves
        self._inner = inner

    def path(self, place: int) -> str:
        """Where a leaf stands."""
        start = 0
        for part, below in enumerate(self._inner or [None] * len(self._level.parts)):
            stop = start + (1 if below is None else len(below.leaves))
            if place < stop:
                above = self._level.path(part)
                return above if below is None else join(above, below.path(place - start))
            start = stop
        raise IndexError(place)

    def close(self, values: Sequence[Any]) -> Any:
        """The tree around other leaves."""
        if self._inner is None:
            return self._level.build(values)
        out, start = [], 0
        for below in self._inner:
            stop = start + (1 if below is None else len(below.leaves))
            out.append(values[start] if below is None else below.close(values[start:stop]))
            start = stop
        return self._level.build(out)

    def beside(self, other: Any) -> list[Any]:
        """What another tree of the same structure has in the place of each leaf.

        Raises:
            ValueError: if its structure is another; the message names the path.
        """
        row = self._level.beside(other)
        if self._inner is None:
            return row
        found: list[Any] = []
        for below, part in zip(self._inner, row, strict=True):
            if below is None:
                found.append(part)
            elif part is None:
                found += [None] * len(below.leaves)
            else:
                found += below.beside(part)
        return found


def _can_be_opened(leaf: Any) -> bool:
    return is_module(leaf) or _is_record(leaf) or not is_leaf(leaf)


def _level_of(tree: Any) -> _Level:
    return _Record(tree) if _is_record(tree) and is_leaf(tree) else _Tree(tree)


class _Level(Protocol):
    """A tree down to leaves that may be trees again."""

    parts: list[Any]

    def build(self, values: Sequence[Any]) -> Any:
        """The tree around other parts."""
        ...

    def beside(self, other: Any) -> list[Any]:
        """The parts of another tree."""
        ...

    def path(self, place: int) -> str:
        """Where a part stands."""
        ...


class _Tree:
    """What Parallax takes for a tree everywhere."""

    __slots__ = ("parts", "spec", "tree")

    def __init__(self, tree: Any) -> None:
        self.tree = tree
        self.parts, self.spec = core.flatten(tree)

    def build(self, values: Sequence[Any]) -> Any:
        return core.unflatten(self.spec, values)

    def beside(self, other: Any) -> list[Any]:
        return list(core.columns(self.tree, (other,))[2][0])

    def path(self, place: int) -> str:
        return self.spec.paths[place]


# -- dataclasses ----------------------------------------------------------------------------------


def _is_record(value: Any) -> bool:
    """Whether a value is a dataclass, and nothing else that has a memory of its own."""
    cls = type(value)
    return dataclasses.is_dataclass(cls) and not is_module(value) and _is_plain_object(cls)


def _is_plain_object(cls: type) -> bool:
    return not issubclass(cls, (dict, list, tuple, set, frozenset, str, bytes, int, float, Tensor))


class _Record:
    """A dataclass, whose parts are all its attributes: its fields, and what is kept beside them."""

    __slots__ = ("cls", "names", "parts")

    def __init__(self, record: Any) -> None:
        self.cls = type(record)
        self.names = _attributes(record)
        self.parts = [getattr(record, name) for name in self.names]

    def build(self, values: Sequence[Any]) -> Any:
        # Neither __init__, which may compute, nor a __setattr__ that refuses.
        made = object.__new__(self.cls)
        for name, value in zip(self.names, values, strict=True):
            object.__setattr__(made, name, value)
        return made

    def beside(self, other: Any) -> list[Any]:
        if type(other) is not self.cls or _attributes(other) != self.names:
            raise ValueError(f"the result is a {self.cls.__name__}, got a {type(other).__name__}")
        return [getattr(other, name) for name in self.names]

    def path(self, place: int) -> str:
        return self.names[place]


def _attributes(record: Any) -> list[str]:
    """The names of the fields, then of what else an instance holds."""
    fields = [field.name for field in dataclasses.fields(record)]
    names = [name for name in fields if hasattr(record, name)]
    return names + [name for name in getattr(record, "__dict__", ()) if name not in names]
