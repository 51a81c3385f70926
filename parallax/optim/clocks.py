"""How many steps each leaf has made: a leaf without a gradient misses a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Clocks"]


class Clocks:
    """The step counts, called clocks, before and after a step.

    Clock 0 counts all steps. It is the clock of a leaf that missed none. A leaf that misses a step
    gets another clock, which it shares with the leaves that missed the same steps.

    Attributes:
        before: the clocks before the step, and last a new one for leaves that were never stepped.
        index: for each leaf of the model the index of its clock in ``before``.
        clock_of: for each leaf of the model its clock after the step, as ``State`` keeps it.
    """

    __slots__ = ("_rule", "before", "clock_of", "index")

    def __init__(
        self,
        step: Tensor,
        clocks: Sequence[Tensor],
        clock_of: tuple[int, ...],
        chosen: Sequence[int],
    ) -> None:
        self.before = [step, *clocks]
        self.clock_of = clock_of
        followers, count = clock_of.count(0), len(clock_of)
        same = followers == len(chosen) and len(clocks) == 0  # dynamo does not trace not of a tuple
        if same and (followers == count or all([clock_of[k] == 0 for k in chosen])):
            self.index = [0] * count
            self._rule: list[tuple[int, bool]] = []
            return
        self._change(chosen)

    def _change(self, chosen: Sequence[int]) -> None:
        """Decides which clocks advance, and gives new ones to leaves that missed this step."""
        old, count = self.clock_of, len(self.before)
        self.before.append(torch.zeros_like(self.before[0]))
        self.index = [clock if clock >= 0 else count for clock in old]
        new = list(old)
        stepped = set(chosen)
        # For each clock after 0: which old one it comes from, and whether it advances.
        self._rule = [(clock, False) for clock in range(1, count)]
        for clock in (*range(count), -1):
            members = [k for k, own in enumerate(old) if own == clock]
            moving = [k for k in members if k in stepped]
            parting = moving
            if clock == 0:  # it advances in every step
                parting = [k for k in members if k not in stepped]
            elif clock > 0 and len(moving) == len(members) and members:
                self._rule[clock - 1] = (clock, True)
                parting = []
            if parting:
                self._rule.append((clock if clock >= 0 else count, clock != 0))
                for k in parting:
                    new[k] = len(self._rule)
        self.clock_of = tuple(new) if new != list(old) else old

    def ticked(self) -> tuple[Tensor, list[Tensor]]:
        """The number of steps and the other clocks after the step."""
        others = [
            self.before[source] + 1 if ticks else self.before[source]
            for source, ticks in self._rule
        ]
        return self.before[0] + 1, others
