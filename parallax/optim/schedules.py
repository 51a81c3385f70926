"""Learning rates as pure functions of the step: the curves of ``torch.optim.lr_scheduler``.

A schedule stands where a number would: ``optim.Adam(lr=StepLR(0.1, 30))``; any hyper-parameter may
be one, and so may any function of your own. ``step`` counts the steps already made. It is an int in
eager code and a tensor under ``torch.compile``, where the rate is part of the graph and changes
without compiling again. Schedules here take both. They are values: two equal ones are equal.

``ReduceLROnPlateau`` is no function of the step: give the rate as a tensor and change it by
``opt.replace(lr=...)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallax.optim.curve import STRATEGIES, Schedule, Step, anneal, least, where

__all__ = [
    "SWALR",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "Schedule",
    "SequentialLR",
    "StepLR",
    "WarmupCosineLR",
]  # fmt: skip

_MOST_RESTARTS = 64


@dataclass(frozen=True)
class LambdaLR(Schedule):
    """``lr * lr_lambda(step)``.

    Args:
        lr: the rate to begin with.
        lr_lambda: takes an int or a tensor to a factor.
    """

    lr: float
    lr_lambda: Callable[[Any], Any]

    def at(self, t: Step) -> Any:
        """The rate."""
        return self.lr * self.lr_lambda(t)


@dataclass(frozen=True)
class ConstantLR(Schedule):
    """``lr * factor`` for ``total_iters`` steps, then ``lr``.

    Args:
        lr: the rate afterwards.
        factor: of the rate before.
        total_iters: how many steps.
    """

    lr: float
    factor: float = 1 / 3
    total_iters: int = 5

    def at(self, t: Step) -> Any:
        """The rate."""
        return where(t < self.total_iters, self.lr * self.factor, self.lr)


@dataclass(frozen=True)
class LinearLR(Schedule):
    """A straight line from ``lr * start_factor`` to ``lr * end_factor``.

    Args:
        lr: the rate.
        start_factor: of the rate at the beginning.
        end_factor: of the rate after ``total_iters`` steps.
        total_iters: how many steps.
    """

    lr: float
    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    def at(self, t: Step) -> Any:
        """The rate."""
        way = least(t, self.total_iters) / self.total_iters
        return self.lr * (self.start_factor + (self.end_factor - self.start_factor) * way)


@dataclass(frozen=True)
class StepLR(Schedule):
    """``lr`` times ``gamma`` after every ``step_size`` steps.

    Args:
        lr: the rate to begin with.
        step_size: how many steps.
        gamma: the factor.

    Example:
        >>> from parallax.optim.schedules import StepLR
        >>> [StepLR(1.0, 2, gamma=0.5)(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def at(self, t: Step) -> Any:
        """The rate."""
        return self.lr * self.gamma ** (t // self.step_size)


@dataclass(frozen=True)
class MultiStepLR(Schedule):
    """``lr`` times ``gamma`` at every milestone.

    Args:
        lr: the rate to begin with.
        milestones: numbers of steps.
        gamma: the factor.
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))

    def at(self, t: Step) -> Any:
        """The rate."""
        return self.lr * self.gamma ** sum([where(t >= m, 1.0, 0.0) for m in self.milestones])


@dataclass(frozen=True)
class ExponentialLR(Schedule):
    """``lr * gamma**step``.

    Args:
        lr: the rate to begin with.
        gamma: the factor per step.
    """

    lr: float
    gamma: float

    def at(self, t: Step) -> Any:
        """The rate."""
        return self.lr * self.gamma**t


@dataclass(frozen=True)
class PolynomialLR(Schedule):
    """``lr * (1 - step / total_iters)**power``, and then 0.

    Args:
        lr: the rate to begin with.
        total_iters: how many steps.
        power: the power.
    """

    lr: float
    total_iters: int = 5
    power: float = 1.0

    def at(self, t: Step) -> Any:
        """The rate."""
        return self.lr * (1.0 - least(t, self.total_iters) / self.total_iters) ** self.power


@dataclass(frozen=True)
class CosineAnnealingLR(Schedule):
    """Half a cosine from ``lr`` to ``eta_min`` in ``T_max`` steps, and back again, and so on.

    Loshchilov and Hutter 2017.

    Args:
        lr: the rate to begin with.
        T_max: how many steps.
        eta_min: the least rate.
    """

    lr: float
    T_max: int
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate."""
        return anneal(self.lr, self.eta_min, t / self.T_max)


@dataclass(frozen=True)
class CosineAnnealingWarmRestarts(Schedule):
    """Half a cosine from ``lr`` to ``eta_min``, again and again, each ``T_mult`` times as long.

    Loshchilov and Hutter 2017.

    Args:
        lr: the rate to begin with.
        T_0: how many steps until the first restart.
        T_mult: the factor, a whole number.
        eta_min: the least rate.
    """

    lr: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate."""
        if self.T_mult == 1:
            return anneal(self.lr, self.eta_min, (t % self.T_0) / self.T_0)
        begin, length = 0.0, float(self.T_0)
        start, size = begin, length
        for _ in range(_MOST_RESTARTS):  # counted by comparing: a logarithm rounds
            start, size = start + size, size * self.T_mult
            begin, length = where(t >= start, start, begin), where(t >= start, size, length)
        return anneal(self.lr, self.eta_min, (t - begin) / length)


@dataclass(frozen=True)
class CyclicLR(Schedule):
    """Up and down between two rates.

    Smith 2017.

    Args:
        base_lr: the lower rate.
        max_lr: the upper rate.
        step_size_up: steps up.
        step_size_down: steps down; by default as many.
        mode: ``"triangular"``, ``"triangular2"`` (half as high each time) or ``"exp_range"``.
        gamma: the factor per step of ``"exp_range"``.
    """

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: str = "triangular"
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"CyclicLR: mode is 'triangular', 'triangular2' or 'exp_range', got {self.mode!r}"
            )

    def at(self, t: Step) -> Any:
        """The rate."""
        down = self.step_size_up if self.step_size_down is None else self.step_size_down
        total = self.step_size_up + down
        up = self.step_size_up / total
        cycle = t // total
        x = t / total - cycle
        height = (self.max_lr - self.base_lr) * where(x <= up, x / up, (x - 1) / (up - 1))
        if self.mode == "triangular2":
            height = height / 2.0**cycle
        elif self.mode == "exp_range":
            height = height * self.gamma**t
        return self.base_lr + height


@dataclass(frozen=True)
class OneCycleLR(Schedule):
    """Up to ``max_lr`` and down to almost nothing; afterwards it stays there.

    Smith and Topin 2018.

    Args:
        max_lr: the largest rate.
        total_steps: how many steps in all.
        pct_start: the share of them that goes up.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: ``max_lr`` divided by the first rate.
        final_div_factor: the first rate divided by the last.
        three_phase: go down as far as it went up, and only then to the last rate.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        if self.anneal_strategy not in STRATEGIES:
            raise ValueError(
                f"OneCycleLR: anneal_strategy is 'cos' or 'linear', got {self.anneal_strategy!r}"
            )

    def at(self, t: Step) -> Any:
        """The rate."""
        first = self.max_lr / self.div_factor
        last = first / self.final_div_factor
        top, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        phases = [(0.0, top, first, self.max_lr), (top, end, self.max_lr, last)]
        if self.three_phase:
            middle = 2 * top
            phases[1:] = [(top, middle, self.max_lr, first), (middle, end, first, last)]
        bend = STRATEGIES[self.anneal_strategy]
        rate: Any = last
        for start, stop, here, there in reversed(phases):
            rate = where(t <= stop, bend(here, there, (t - start) / (stop - start)), rate)
        return rate


@dataclass(frozen=True)
class SWALR(Schedule):
    """From ``lr`` to the constant rate of stochastic weight averaging.

    Izmailov et al. 2018.

    Args:
        lr: the rate to begin with.
        swa_lr: the rate at the end.
        anneal_epochs: how many steps.
        anneal_strategy: ``"cos"`` or ``"linear"``.
    """

    lr: float
    swa_lr: float
    anneal_epochs: int = 10
    anneal_strategy: str = "cos"

    def at(self, t: Step) -> Any:
        """The rate."""
        way = least(t, self.anneal_epochs) / max(self.anneal_epochs, 1)
        return STRATEGIES[self.anneal_strategy](self.lr, self.swa_lr, way)


@dataclass(frozen=True)
class WarmupCosineLR(Schedule):
    """A straight line from 0 to ``lr``, then half a cosine down to ``eta_min``, which it keeps.

    Args:
        lr: the largest rate.
        warmup_steps: steps up.
        total_steps: steps in all.
        eta_min: the last rate.
    """

    lr: float
    warmup_steps: int
    total_steps: int
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate."""
        span = max(self.total_steps - self.warmup_steps, 1)
        down = anneal(self.lr, self.eta_min, least(t - self.warmup_steps, span) / span)
        return where(t < self.warmup_steps, self.lr * t / max(self.warmup_steps, 1), down)


@dataclass(frozen=True)
class SequentialLR(Schedule):
    """Several schedules one after the other, each counting from its own beginning.

    Args:
        schedules: the schedules.
        milestones: when the next one begins; one fewer than there are schedules.
    """

    schedules: tuple[Callable[[Any], Any], ...]
    milestones: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "milestones", tuple(self.milestones))
        if len(self.schedules) != len(self.milestones) + 1:
            raise ValueError(
                f"SequentialLR: {len(self.schedules)} schedules need {len(self.schedules) - 1} "
                f"milestones, got {len(self.milestones)}"
            )

    def at(self, t: Step) -> Any:
        """The rate."""
        rate = self.schedules[0](t)
        for schedule, begin in zip(self.schedules[1:], self.milestones):  # noqa: B905  # dynamo traces no strict=
            rate = where(t >= begin, schedule(t - begin), rate)
        return rate
