"""Schedules that rise and fall, along cosines and straight lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parallax.optim.schedules.curve import STRATEGIES, Schedule, Step, anneal, least, where

__all__ = [
    "SWALR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "OneCycleLR",
    "WarmupCosineLR",
]

_MOST_RESTARTS = 64


@dataclass(frozen=True)
class CosineAnnealingLR(Schedule):
    """A cosine from ``lr`` to ``eta_min`` in ``T_max`` steps, then back, and so on.

    Loshchilov and Hutter 2017.

    Args:
        lr: the rate to begin with.
        T_max: how many steps.
        eta_min: the least rate.

    Example:
        >>> from parallax.optim.schedules import CosineAnnealingLR
        >>> rate = CosineAnnealingLR(1.0, T_max=10)
        >>> [round(rate(step), 3) for step in (0, 5, 10, 15, 20)]
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """

    lr: float
    T_max: int
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
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

    Example:
        >>> from parallax.optim.schedules import CosineAnnealingWarmRestarts
        >>> rate = CosineAnnealingWarmRestarts(1.0, T_0=10, T_mult=2)  # restarts at 10, 30, 70, ...
        >>> [round(rate(step), 3) for step in (0, 5, 10, 20, 30)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    lr: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        if self.T_mult == 1:
            return anneal(self.lr, self.eta_min, (t % self.T_0) / self.T_0)
        begin, length = 0.0, float(self.T_0)
        start, size = begin, length
        for _ in range(_MOST_RESTARTS):  # found by comparing, since a logarithm would be rounded
            start, size = start + size, size * self.T_mult
            begin, length = where(t >= start, start, begin), where(t >= start, size, length)
        return anneal(self.lr, self.eta_min, (t - begin) / length)


@dataclass(frozen=True)
class CyclicLR(Schedule):
    """Rises and falls between two rates, in a cycle.

    Smith 2017.

    Args:
        base_lr: the lower rate.
        max_lr: the upper rate.
        step_size_up: steps up.
        step_size_down: steps down; by default as many.
        mode: ``"triangular"``, ``"triangular2"`` (half as high each time) or ``"exp_range"``.
        gamma: the factor per step of ``"exp_range"``.
        scale_fn: a function whose result multiplies the amplitude, instead of ``mode``.
        scale_mode: what ``scale_fn`` is given: the number of the ``"cycle"``, from 1, or that of
            the step (``"iterations"``).

    Example:
        >>> from parallax.optim.schedules import CyclicLR
        >>> rate = CyclicLR(base_lr=0.0, max_lr=1.0, step_size_up=2, mode="triangular2")
        >>> [rate(step) for step in range(9)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25, 0.0]
    """

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: str = "triangular"
    gamma: float = 1.0
    scale_fn: Callable[[Any], Any] | None = None
    scale_mode: str = "cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("triangular", "triangular2", "exp_range"):
            raise ValueError(
                f"CyclicLR: mode must be 'triangular', 'triangular2' or 'exp_range', "
                f"got {self.mode!r}"
            )
        if self.scale_mode not in ("cycle", "iterations"):
            raise ValueError(
                f"CyclicLR: scale_mode must be 'cycle' or 'iterations', got {self.scale_mode!r}"
            )

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        down = self.step_size_up if self.step_size_down is None else self.step_size_down
        total = self.step_size_up + down
        up = self.step_size_up / total
        cycle = t // total
        x = t / total - cycle
        height = (self.max_lr - self.base_lr) * where(x <= up, x / up, (x - 1) / (up - 1))
        if self.scale_fn is not None:
            height = height * self.scale_fn(cycle + 1 if self.scale_mode == "cycle" else t)
        elif self.mode == "triangular2":
            height = height / 2.0**cycle
        elif self.mode == "exp_range":
            height = height * self.gamma**t
        return self.base_lr + height


@dataclass(frozen=True)
class OneCycleLR(Schedule):
    """Rises to ``max_lr``, then falls to a tiny rate and stays there.

    Smith and Topin 2018.

    Args:
        max_lr: the largest rate.
        total_steps: how many steps in all.
        pct_start: the fraction of them in which the rate rises.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        div_factor: ``max_lr`` divided by the first rate.
        final_div_factor: the first rate divided by the last.
        three_phase: fall to the first rate in as many steps as it rose, and only then to the last.

    Example:
        >>> from parallax.optim.schedules import OneCycleLR
        >>> rate = OneCycleLR(max_lr=1.0, total_steps=101)
        >>> [round(rate(step), 3) for step in (0, 10, 29, 60, 100)]
        [0.04, 0.29, 1.0, 0.603, 0.0]
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anneal_strategy not in STRATEGIES:
            raise ValueError(
                f"OneCycleLR: anneal_strategy must be 'cos' or 'linear', "
                f"got {self.anneal_strategy!r}"
            )

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
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

    Example:
        >>> from parallax.optim.schedules import SWALR
        >>> rate = SWALR(lr=1.0, swa_lr=0.5, anneal_epochs=4, anneal_strategy="linear")
        >>> [rate(step) for step in range(6)]
        [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    """

    lr: float
    swa_lr: float
    anneal_epochs: int = 10
    anneal_strategy: str = "cos"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anneal_strategy not in STRATEGIES:
            raise ValueError(
                f"SWALR: anneal_strategy must be 'cos' or 'linear', got {self.anneal_strategy!r}"
            )

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
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

    Example:
        >>> from parallax import optim
        >>> rate = optim.schedules.WarmupCosineLR(1.0, warmup_steps=10, total_steps=110)
        >>> [round(rate(step), 3) for step in (0, 5, 10, 60, 110, 200)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
        >>> opt = optim.AdamW(lr=rate)
    """

    lr: float
    warmup_steps: int
    total_steps: int
    eta_min: float = 0.0

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        span = max(self.total_steps - self.warmup_steps, 1)
        down = anneal(self.lr, self.eta_min, least(t - self.warmup_steps, span) / span)
        return where(t < self.warmup_steps, self.lr * t / max(self.warmup_steps, 1), down)
