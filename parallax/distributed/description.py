"""``Plan.describe``: what each process holds and sends under a plan, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from parallax.distributed.costs import Collective, collectives_of, largest_gathered
from parallax.distributed.placements import Placed
from parallax.distributed.rules import FullyShard
from parallax.tree import core
from parallax.tree.places import Survey
from parallax.tree.table import table

__all__ = ["Description", "DescriptionRow", "describe"]

_SHOWN = 60  # rows


class DescriptionRow(NamedTuple):
    """One leaf in a description.

    Attributes:
        path: its path.
        shape: of the whole leaf.
        dtype: its dtype.
        placement: how it is cut.
        local_shape: of what one process holds.
        nbytes: the bytes of that.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    placement: str
    local_shape: tuple[int, ...]
    nbytes: int


class Description:
    """What ``Plan.describe`` returns; it prints as a table. All bytes are those of one process.

    Attributes:
        rows: one per leaf.
        parameters: the bytes of all leaves.
        gradients: the bytes of the gradients of those that are trained.
        state: the bytes of the optimizer's state; 0 without an optimizer.
        gathered: the bytes of the largest part that is put together at once.
        part: the path of that part; empty if there is none.
        collectives: what the processes send in a step.
    """

    def __init__(
        self,
        rows: list[DescriptionRow],
        gradients: int,
        state: int,
        largest: tuple[str, int],
        collectives: list[Collective],
    ) -> None:
        self.rows = rows
        self.parameters = sum([row.nbytes for row in rows])
        self.gradients = gradients
        self.state = state
        self.part, self.gathered = largest
        self.collectives = collectives

    def __str__(self) -> str:
        def cells(row: DescriptionRow) -> list[str]:
            dtype = str(row.dtype).removeprefix("torch.")
            local = str(row.local_shape)
            return [row.path, str(row.shape), dtype, row.placement, local, f"{row.nbytes:,}"]

        rows = [cells(row) for row in self.rows]
        if len(rows) > _SHOWN:
            left = f"... {len(rows) - _SHOWN:,} more leaves"
            rows = [*rows[: _SHOWN // 2], [left, *[""] * 5], *rows[-_SHOWN // 2 :]]
        head = ["path", "shape", "dtype", "placement", "local shape", "bytes"]
        total = [f"total: {len(self.rows):,} leaves", "", "", "", "", f"{self.parameters:,}"]
        parts = [table([head, *rows, total], right=[5]), self._memory()]
        if self.collectives:
            parts.append(self._sent())
        return "\n\n".join(parts)

    def _memory(self) -> str:
        lines = [
            ["bytes of one process", ""],
            ["parameters and buffers", f"{self.parameters:,}"],
            ["gradients", f"{self.gradients:,}"],
            ["optimizer state", f"{self.state:,}"],
        ]
        if self.part:
            lines.append([f"largest gathered part: {self.part}", f"{self.gathered:,}"])
        total = self.parameters + self.gradients + self.state + self.gathered
        return table([*lines, ["total, without activations", f"{total:,}"]], right=[1])

    def _sent(self) -> str:
        lines = [
            [one.kind, one.dimension, one.why, f"{one.times:,}", f"{one.nbytes:,}"]
            for one in self.collectives
        ]
        counts = sum([one.times for one in self.collectives])
        nbytes = sum([one.nbytes for one in self.collectives])
        head = ["collectives of a step", "along", "of", "times", "bytes sent"]
        return table([head, *lines, ["total", "", "", f"{counts:,}", f"{nbytes:,}"]], right=[3, 4])

    __repr__ = __str__


def describe(
    survey: Survey,
    placed: Sequence[Placed | None],
    sizes: Mapping[str, int],
    rules: Mapping[str, Any],
    optimizer: Any,
    tokens: int,
) -> Description:
    """What ``Plan.describe`` does, of a module whose leaves are placed; see there."""
    structure: Any = survey.spec.parts[0]
    leaves = [one for one in placed if one is not None]
    pairs = list(zip(placed, structure.trainable, strict=True))
    trained = [one for one, train in pairs if one is not None and train]
    others = [one for one, train in pairs if one is not None and not train]
    rows = [
        DescriptionRow(one.path, one.shape, one.dtype, str(one), one.local_shape, one.nbytes)
        for one in leaves
    ]
    state = 0
    if optimizer is not None:
        local = [
            leaf if one is None else torch.empty(one.local_shape, dtype=one.dtype, device="meta")
            for leaf, one in zip(survey.leaves, placed, strict=True)
        ]
        held = core.leaves(optimizer.init(survey.spec.build(local)))
        state = sum([leaf.nbytes for leaf in held if isinstance(leaf, torch.Tensor)])
    sharded = [name for name, rule in rules.items() if isinstance(rule, FullyShard)]
    largest = [largest_gathered(leaves, name, sizes[name]) for name in sharded if sizes[name] > 1]
    return Description(
        rows,
        sum([one.nbytes for one in trained]),
        state,
        max(largest, key=lambda item: item[1], default=("", 0)),
        collectives_of(trained, others, sizes, rules, tokens),
    )
