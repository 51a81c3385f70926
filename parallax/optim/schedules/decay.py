"""Schedules that multiply the initial rate by a factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallax.optim.arguments import check_at_least
from parallax.optim.schedules.curve import Schedule, Step, least, where

__all__ = [
    "ConstantLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "PolynomialLR",
    "StepLR",
]


@dataclass(frozen=True)
class LambdaLR(Schedule):
    """``lr * lr_lambda(step)``.

    Args:
        lr: the rate to begin with.
        lr_lambda: takes an int or a tensor to a factor.

    Example:
        >>> from parallax.optim.schedules import LambdaLR
        >>> rate = LambdaLR(1.0, lambda step: 1 / (1 + step))
        >>> [rate(step) for step in (0, 1, 3)]
        [1.0, 0.5, 0.25]
    """

    lr: float
    lr_lambda: Callable[[Any], Any]

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        return self.lr * self.lr_lambda(t)


@dataclass(frozen=True)
class MultiplicativeLR(Schedule):
    """``lr * lr_lambda(1) * ... * lr_lambda(step)``: each step multiplies by a factor of its own.

    Args:
        lr: the rate to begin with.
        lr_lambda: takes an int to a factor; called once per step that was made.
        total_iters: after how many steps the rate stays. Needed where the number of steps is a
            tensor, under ``torch.compile`` or ``vmap``: the factors are then a table.

    Example:
        >>> from parallax.optim.schedules import MultiplicativeLR
        >>> rate = MultiplicativeLR(1.0, lambda step: 0.5 if step <= 2 else 1.0)
        >>> [rate(step) for step in range(4)]
        [1.0, 0.5, 0.25, 0.25]
    """

    lr: float
    lr_lambda: Callable[[int], float]
    total_iters: int | None = None

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        if not isinstance(t, Tensor):
            last = t if self.total_iters is None else min(t, self.total_iters)
            return self.lr * math.prod([self.lr_lambda(k) for k in range(1, last + 1)])
        if self.total_iters is None:
            raise ValueError(
                "MultiplicativeLR: the number of steps is a tensor here, so its value is unknown, "
                "and with it the number of factors. Say after how many steps the rate stays: "
                "MultiplicativeLR(lr, lr_lambda, total_iters=...)"
            )
        factors = [1.0, *[self.lr_lambda(k) for k in range(1, self.total_iters + 1)]]
        table = torch.tensor(factors, dtype=t.dtype, device=t.device).cumprod(0)
        place = t.clamp(max=self.total_iters).long()
        return self.lr * table.index_select(0, place.reshape(1)).squeeze(0)


@dataclass(frozen=True)
class ConstantLR(Schedule):
    """``lr * factor`` for ``total_iters`` steps, then ``lr``.

    Args:
        lr: the rate afterwards.
        factor: of the rate before.
        total_iters: how many steps.

    Example:
        >>> from parallax.optim.schedules import ConstantLR
        >>> rate = ConstantLR(1.0, factor=0.25, total_iters=2)
        >>> [rate(step) for step in range(4)]
        [0.25, 0.25, 1.0, 1.0]
    """

    lr: float
    factor: float = 1 / 3
    total_iters: int = 5

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        return where(t < self.total_iters, self.lr * self.factor, self.lr)


@dataclass(frozen=True)
class LinearLR(Schedule):
    """A straight line from ``lr * start_factor`` to ``lr * end_factor``.

    Args:
        lr: the rate.
        start_factor: of the rate at the beginning.
        end_factor: of the rate after ``total_iters`` steps.
        total_iters: how many steps.

    Example:
        >>> from parallax.optim.schedules import LinearLR
        >>> rate = LinearLR(1.0, start_factor=0.5, total_iters=2)
        >>> [rate(step) for step in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """

    lr: float
    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("schedules.LinearLR", "total_iters", self.total_iters, 1)

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
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
        """The rate after ``t`` steps."""
        return self.lr * self.gamma ** (t // self.step_size)


@dataclass(frozen=True)
class MultiStepLR(Schedule):
    """``lr`` times ``gamma`` at every milestone.

    Args:
        lr: the rate to begin with.
        milestones: numbers of steps.
        gamma: the factor.

    Example:
        >>> from parallax.optim.schedules import MultiStepLR
        >>> rate = MultiStepLR(1.0, milestones=(2, 3), gamma=0.5)
        >>> [rate(step) for step in range(5)]
        [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    lr: float
    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        given: Any = self.milestones
        if isinstance(given, list):
            object.__setattr__(self, "milestones", tuple(given))
        super().__post_init__()

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        return self.lr * self.gamma ** sum([where(t >= m, 1.0, 0.0) for m in self.milestones])


@dataclass(frozen=True)
class ExponentialLR(Schedule):
    """``lr * gamma**step``.

    Args:
        lr: the rate to begin with.
        gamma: the factor per step.

    Example:
        >>> from parallax.optim.schedules import ExponentialLR
        >>> rate = ExponentialLR(1.0, gamma=0.5)
        >>> [rate(step) for step in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """

    lr: float
    gamma: float

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        return self.lr * self.gamma**t


@dataclass(frozen=True)
class PolynomialLR(Schedule):
    """``lr * (1 - step / total_iters)**power``, and then 0.

    Args:
        lr: the rate to begin with.
        total_iters: how many steps.
        power: the power.

    Example:
        >>> from parallax.optim.schedules import PolynomialLR
        >>> rate = PolynomialLR(1.0, total_iters=4, power=2.0)
        >>> [rate(step) for step in range(6)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0, 0.0]
    """

    lr: float
    total_iters: int = 5
    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("schedules.PolynomialLR", "total_iters", self.total_iters, 1)

    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps."""
        return self.lr * (1.0 - least(t, self.total_iters) / self.total_iters) ** self.power
