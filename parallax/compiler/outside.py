"""Tensors that a function reads from globals and what methods close over, beside its arguments.

Dynamo takes a global that is an argument as well for that argument, and guards it no more: at a
call with another argument, its graph would read that one in the global's place. Here such pairs
are found when a graph has been traced, and compared at every later call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

__all__ = ["LEAF", "Outside"]

LEAF = re.compile(r"L\['parallax_leaves'\](?:\[(\d+)\])?")


class Outside:
    """The tensors among the globals that one graph reads.

    Attributes:
        same: pairs of a leaf's index and the place of the global it was, when traced.
        tensors: the places of all others.
        names: those of globals and attributes in the code that was traced.
        traced: whether there is a graph, that may have run.
    """

    def __init__(self, space: dict[str, Any]) -> None:
        self.same: list[tuple[int, CodeType]] = []
        self.tensors: list[CodeType] = []
        self.names: frozenset[str] = frozenset()
        self.traced = False
        self._space = {"G": space}

    def add(self, entries: Sequence[Any]) -> None:
        """Notes what one trace has read.

        Args:
            entries: what dynamo would guard: among it, all that stands on the way to a global.
        """
        self.traced = True
        found = [(LEAF.fullmatch(entry.orig_guard.name), entry) for entry in entries]
        leaves = {id(e.value): int(m[1]) for m, e in found if m and m[1]}
        for match, entry in found:
            place = entry.orig_guard.name
            if match or "G[" not in place or "L[" in place or not entry.has_value:
                continue
            if isinstance(entry.value, Tensor):
                if entry.guard_type == "TENSOR_MATCH":
                    self._note(self.tensors, place, entry.value)
                continue
            for inner, value in _within(place, entry.value, self.names):
                if id(value) in leaves and isinstance(value, Tensor):
                    self._note(self.same, inner, value, leaves[id(value)])

    def _note(self, kept: list[Any], place: str, value: Tensor, leaf: int | None = None) -> None:
        try:
            code = compile(place, "<a global>", "eval")
        except SyntaxError:  # dynamo has no expression for this place
            return
        if self._at(code) is value:
            kept.append(code if leaf is None else (leaf, code))

    def unchanged(self, leaves: Sequence[Tensor]) -> bool:
        """Whether the globals that were leaves still are."""
        return all(self._at(code) is leaves[k] for k, code in self.same)

    def present(self) -> list[Tensor]:
        """All other global tensors, as they are now."""
        return [value for value in map(self._at, self.tensors) if isinstance(value, Tensor)]

    def _at(self, code: CodeType) -> Any:
        try:
            return eval(code, self._space)
        except (AttributeError, KeyError, IndexError, NameError, TypeError):
            return None  # it is gone


def _within(place: str, value: Any, names: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """What an object holds, with the places."""
    if isinstance(value, dict):
        for key, inner in list(value.items()):
            if type(key) in (str, int):
                yield f"{place}[{key!r}]", inner
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            yield f"{place}[{index}]", inner
    elif type(value) is FunctionType:
        for index, cell in enumerate(value.__closure__ or ()):
            with suppress(ValueError):  # not filled yet
                yield f"{place}.__closure__[{index}].cell_contents", cell.cell_contents
    else:
        for name, inner in list((getattr(value, "__dict__", None) or {}).items()):
            if name in names:
                yield f"{place}.{name}", inner
