"""Optimizers that step the leaves of each group of hyper-parameters by themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, resolved
from parallax.optim.lists import Lists
from parallax.optim.parts import (
    hold_parts_in_trace,
    parts_in_trace,
    parts_of,
    put_parts,
    put_parts_in_trace,
)

__all__ = ["ByGroup"]


class ByGroup(Optimizer):
    """An optimizer that keeps nothing for all leaves together."""

    _elementwise: ClassVar[bool] = False  # steps each entry of a leaf by itself

    @abstractmethod
    def _advance(self, at: Lists, h: Hyper, step: Tensor, donate: bool) -> Lists:
        """Steps lists, in private memory unless ``donate``."""

    def _advance_all(
        self,
        rows: Sequence[Lists],
        hypers: Sequence[Hyper],
        step: Tensor,
        numbers: Mapping[str, Tensor],
        donate: bool,
    ) -> tuple[list[Lists], Mapping[str, Tensor]]:
        pairs = zip(rows, hypers, strict=True)
        return [self._advance_parts(at, h, step, donate) for at, h in pairs], numbers

    def _advance_parts(self, at: Lists, h: Hyper, step: Tensor, donate: bool) -> Lists:
        """As ``_advance``; of distributed leaves each process steps what it holds, if it can."""
        if dynamo.is_compiling():
            return self._advance_parts_in_trace(at, h, step, donate)
        parts = parts_of(at) if self._elementwise and self._is_plain_eager() else None
        if parts is None or shards.any_distributed(self._leaves):
            return self._advance(at, h, step, donate)
        return put_parts(at, parts, self._advance(parts, h, step, donate), donate)

    def _advance_parts_in_trace(self, at: Lists, h: Hyper, step: Tensor, donate: bool) -> Lists:
        possible = self._elementwise and not self._differentiable
        if not possible or not hold_parts_in_trace(at) or shards.any_distributed(self._leaves):
            return self._advance(at, h, step, donate)
        full = self._full(at, resolved(h, step))
        done = self._advance(parts_in_trace(full), h, step, donate)
        return put_parts_in_trace(full, done)

    def _is_plain_eager(self) -> bool:
        """Whether a step is neither transformed nor recorded."""
        return not (functorch.transform_active() or self._differentiable)
