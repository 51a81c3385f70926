"""``Schedule`` and its arithmetic, for Python numbers and for tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from parallax._errors.habits import Habit
from parallax.optim.arguments import check_at_least, check_fields
from parallax.tree.arguments import check_number

__all__ = ["STRATEGIES", "Schedule", "Step", "anneal", "least", "line", "where"]

Step = Any  # an int or a tensor of no dimension


_NOT_NEGATIVE = (
    "lr", "base_lr", "max_lr", "swa_lr", "eta_min", "milestones", "total_iters", "anneal_epochs",
    "warmup_steps", "step_size_down",
)  # fmt: skip
_POSITIVE = ("step_size", "step_size_up", "T_max", "T_0", "T_mult", "total_steps")


class Schedule(ABC):
    """The base of the schedules: a function of the number of steps already made.

    A subclass is a frozen dataclass that defines ``at``.

    Example:
        >>> from dataclasses import dataclass
        >>> from parallax import optim
        >>> @dataclass(frozen=True)
        ... class InverseSquareRoot(optim.schedules.Schedule):
        ...     lr: float
        ...     def at(self, t):
        ...         return self.lr * (t + 1) ** -0.5
        >>> opt = optim.SGD(lr=InverseSquareRoot(0.1))
        >>> opt.lr(0), opt.lr(3)
        (0.1, 0.05)
    """

    def __post_init__(self) -> None:
        """Checks the arguments against the annotations of the fields."""
        what = f"schedules.{type(self).__name__}"
        check_fields(what, self)
        for name in (
            "lr",
            "base_lr",
            "max_lr",
            "swa_lr",
            "eta_min",
            "step_size_down",
            "milestones",
        ):
            check_at_least(what, name, _first(vars(self).get(name)), 0)
        for name in ("total_iters", "anneal_epochs", "warmup_steps"):
            check_at_least(what, name, getattr(self, name, None), 0)
        for name in ("step_size", "step_size_up", "T_max", "T_0", "T_mult", "total_steps"):
            check_at_least(what, name, vars(self).get(name), 0, strictly=True)

    @overload
    def __call__(self, step: Tensor) -> Tensor: ...
    @overload
    def __call__(self, step: int) -> float | Tensor: ...
    def __call__(self, step: Step) -> Any:
        """The rate after ``step`` steps.

        Args:
            step: an int in eager code; under ``torch.compile`` a tensor of no dimension.

        Returns:
            The rate: a float, or a tensor if ``step`` is one.

        Raises:
            TypeError: if ``step`` is not a number.
        """
        try:
            return self.at(wide(step))
        except TypeError:
            check_number(f"schedules.{type(self).__name__}", "step", step)
            raise

    @abstractmethod
    def at(self, t: Step) -> Any:
        """The rate after ``t`` steps, an int or a tensor of double precision."""


for _name, _line in {
    "step": "model, state = opt.step(model, grads, state), whose state counts the steps",
    "get_last_lr": "schedule(step)",
    "state_dict": "io.save({'model': model, 'state': state}, path); the state counts the steps",
}.items():
    setattr(Schedule, _name, Habit(_name, _line, "a schedule is a function of the step"))


def _first(value: Any) -> Any:
    """A number as it is; of a tuple the least."""
    return min(value, default=None) if isinstance(value, tuple) else value


def wide(step: Step) -> Step:
    """A tensor in double precision, where the device has it; a number as it is."""
    if not isinstance(step, Tensor):
        return step
    return step if step.device.type == "mps" else step.double()


def where(condition: Any, yes: Any, no: Any) -> Any:
    """``yes`` if the condition holds, else ``no``."""
    if isinstance(condition, Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def least(t: Step, most: float) -> Any:
    """The smaller of ``t`` and ``most``."""
    return t.clamp(max=most) if isinstance(t, Tensor) else min(t, most)


def anneal(start: float, end: float, way: Any) -> Any:
    """From ``start`` at 0 to ``end`` at 1 along a cosine."""
    cosine = torch.cos(math.pi * way) if isinstance(way, Tensor) else math.cos(math.pi * way)
    return end + (start - end) * (1 + cosine) / 2


def line(start: float, end: float, way: Any) -> Any:
    """From ``start`` at 0 to ``end`` at 1 along a straight line."""
    return start + (end - start) * way


STRATEGIES: dict[str, Callable[[float, float, Any], Any]] = {"cos": anneal, "linear": line}
