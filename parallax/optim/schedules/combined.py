"""Schedules that combine others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from parallax.optim.schedules.curve import Schedule, Step, where
from parallax.optim.schedules.cycle import CosineAnnealingLR
from parallax.optim.schedules.decay import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

__all__ = ["ChainedScheduler", "SequentialLR"]


@dataclass(frozen=True)
class SequentialLR(Schedule):
    """Several schedules one after the other, each counting its own steps from 0.

    Args:
        schedules: the schedules.
        milestones: when the next one begins; one fewer than there are schedules.

    Example:
        >>> from parallax.optim.schedules import ExponentialLR, LinearLR, SequentialLR
        >>> warmup, decay = LinearLR(1.0, start_factor=0.5, total_iters=2), ExponentialLR(1.0, 0.5)
        >>> rate = SequentialLR((warmup, decay), milestones=(2,))
        >>> [rate(step) for step in range(5)]
        [0.5, 0.75, 1.0, 0.5, 0.25]
    """

    schedules: tuple[Callable[[Any], Any], ...]
    milestones: tuple[int, ...]

    def __post_init__(self) -> None:
        _freeze_schedules(self)
        given: Any = self.milestones
        if isinstance(given, list):
            object.__setattr__(self, "milestones", tuple(given))
        super().__post_init__()
        if len(self.schedules) != len(self.milestones) + 1:
            raise ValueError(
                f"SequentialLR: {len(self.schedules)} schedules need {len(self.schedules) - 1} "
                f"milestones, got {len(self.milestones)}"
            )

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        rate = self.schedules[0](t)
        for schedule, begin in zip(self.schedules[1:], self.milestones, strict=True):
            rate = where(t >= begin, schedule(t - begin), rate)
        return rate


@dataclass(frozen=True)
class ChainedScheduler(Schedule):
    """The product of several schedules: the initial rate times the factor of each of them.

    Args:
        schedules: schedules of one initial rate that multiply it by a factor: ``ConstantLR``,
            ``LinearLR``, ``StepLR``, ``MultiStepLR``, ``ExponentialLR``, ``PolynomialLR``,
            ``MultiplicativeLR``, ``CosineAnnealingLR`` down to 0, or chains of these.

    Raises:
        TypeError: if one is no such schedule; a ``LambdaLR`` in torch's chain undoes the others.
        ValueError: if there is none, or they begin with different rates.

    Example:
        >>> from parallax.optim.schedules import ChainedScheduler, ConstantLR, ExponentialLR
        >>> rate = ChainedScheduler((ConstantLR(1.0, 0.5, 2), ExponentialLR(1.0, 0.5)))
        >>> rate.lr, [rate(step) for step in range(4)]
        (1.0, [0.5, 0.25, 0.25, 0.125])
    """

    schedules: tuple[Any, ...]

    def __post_init__(self) -> None:
        _freeze_schedules(self)
        super().__post_init__()
        if not self.schedules:
            raise ValueError("ChainedScheduler: give at least one schedule")
        for schedule in self.schedules:
            if not _multiplies(schedule):
                raise TypeError(
                    f"ChainedScheduler: {schedule!r} does not multiply the rate of the others. "
                    f"Write a function of the step: lr=lambda step: ..."
                )
        rates = {schedule.lr for schedule in self.schedules}
        if len(rates) > 1:
            raise ValueError(
                f"ChainedScheduler: all schedules must have the same lr, got {sorted(rates)}"
            )

    @property
    def lr(self) -> float | Tensor:
        """The rate to begin with."""
        rate: float | Tensor = self.schedules[0].lr
        return rate

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        rate = self.lr
        for schedule in self.schedules:
            rate = rate * (schedule.at(t) / schedule.lr)
        return rate


_MULTIPLY = (
    ConstantLR, ExponentialLR, LinearLR, MultiStepLR, MultiplicativeLR, PolynomialLR, StepLR,
    ChainedScheduler,
)  # fmt: skip


def _multiplies(schedule: Any) -> bool:
    if isinstance(schedule, CosineAnnealingLR):
        return schedule.eta_min == 0
    return isinstance(schedule, _MULTIPLY)


def _freeze_schedules(schedule: Any) -> None:
    given, what = schedule.schedules, f"schedules.{type(schedule).__name__}"
    if not isinstance(given, tuple | list) or not all(map(callable, given)):
        raise TypeError(
            f"{what}: schedules must be a list of schedules, got {given!r}. "
            f"Write {what}([schedules.LinearLR(0.1), schedules.ExponentialLR(0.1, 0.9)])"
        )
    object.__setattr__(schedule, "schedules", tuple(given))
