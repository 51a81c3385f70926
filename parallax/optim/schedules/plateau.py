"""``ReduceLROnPlateau``: the rate falls when a measured number stops improving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_at_least, check_fields, check_kind
from parallax.optim.checks import check_state
from parallax.tree.arguments import check_number

__all__ = ["Plateau", "ReduceLROnPlateau"]


class Plateau(Module):
    """The state of ``ReduceLROnPlateau``, tensors of no dimension.

    Attributes:
        lr: the rate now: ``opt.replace(lr=plateau.lr)``.
        best: the best number so far.
        num_bad_epochs: how many numbers since were not better.
        cooldown_counter: for how many more numbers bad ones do not count.

    Example:
        >>> from parallax import optim
        >>> watch = optim.schedules.ReduceLROnPlateau(factor=0.5, patience=0)
        >>> plateau, opt = watch.init(lr=1.0), optim.SGD()
        >>> for loss in (3.0, 3.0):
        ...     plateau = watch.step(plateau, loss)
        ...     opt = opt.replace(lr=plateau.lr)
        >>> plateau.best.item(), opt.lr.item()
        (3.0, 0.5)
    """

    lr: Buffer
    best: Buffer
    num_bad_epochs: Buffer
    cooldown_counter: Buffer


@dataclass(frozen=True)
class ReduceLROnPlateau:
    """Multiplies the rate by ``factor`` when a number stops improving.

    As ``torch.optim.lr_scheduler.ReduceLROnPlateau``, as a pure function of its state and the
    number. The rate is a tensor, so that a compiled step takes a new one without compiling again.

    Args:
        mode: whether better is less (``"min"``) or more (``"max"``).
        factor: of the rate; less than 1.
        patience: how many numbers in a row may fail to improve.
        threshold: by how much a number must improve.
        threshold_mode: whether the threshold is a fraction of the best (``"rel"``) or a difference
            (``"abs"``).
        cooldown: how many numbers after a fall of the rate are not counted.
        min_lr: the least rate.
        eps: smaller changes of the rate are ignored.

    Raises:
        ValueError: if ``factor`` is not less than 1, ``eps`` is negative, or a mode is unknown.

    Example:
        >>> from parallax.optim.schedules import ReduceLROnPlateau
        >>> watch = ReduceLROnPlateau(factor=0.5, patience=0)
        >>> plateau = watch.init(lr=1.0)
        >>> for loss in (3.0, 2.0, 2.0):
        ...     plateau = watch.step(plateau, loss)
        >>> plateau.lr.item()
        0.5
    """

    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_lr: float = 0
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_fields("schedules.ReduceLROnPlateau", self)
        check_at_least("schedules.ReduceLROnPlateau", "eps", self.eps, 0)
        if not self.factor < 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor must be less than 1, got {self.factor}")
        for name, choices in (("mode", ("min", "max")), ("threshold_mode", ("rel", "abs"))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"ReduceLROnPlateau: {name} must be {choices[0]!r} or {choices[1]!r}, "
                    f"got {value!r}"
                )

    def init(self, lr: float | Tensor) -> Plateau:
        """The state before the first number.

        Args:
            lr: the rate to begin with.

        Returns:
            The state.
        """
        check_kind("schedules.ReduceLROnPlateau.init", "lr", lr, "float", 0.1)
        check_at_least("schedules.ReduceLROnPlateau.init", "lr", lr, 0)
        worst = math.inf if self.mode == "min" else -math.inf
        wide = torch.float64
        none = torch.zeros((), dtype=torch.int64)
        rate = torch.as_tensor(lr, dtype=wide).detach().clone()
        return Plateau(rate, torch.tensor(worst, dtype=wide), none, none.clone())

    def step(self, plateau: Plateau, metrics: float | Tensor) -> Plateau:
        """The state after one more number.

        Args:
            plateau: the state.
            metrics: the number; under ``torch.compile`` a tensor.

        Returns:
            The next state.
        """
        check_state("schedules.ReduceLROnPlateau.step", plateau, Plateau, "watch.init(lr)")
        check_number("schedules.ReduceLROnPlateau.step", "metrics", metrics)
        now = metrics if isinstance(metrics, Tensor) else torch.tensor(metrics)
        now = now.detach().to(plateau.best)
        better = self._better(now, plateau.best)
        bad = torch.where(better, 0, plateau.num_bad_epochs + 1)
        cooling = plateau.cooldown_counter > 0
        bad = torch.where(cooling, 0, bad)
        falls = bad > self.patience
        left = torch.where(cooling, plateau.cooldown_counter - 1, plateau.cooldown_counter)
        lower = (plateau.lr * self.factor).clamp(min=self.min_lr)
        enough = plateau.lr - lower > self.eps
        return Plateau(
            torch.where(falls & enough, lower, plateau.lr),
            torch.where(better, now, plateau.best),
            torch.where(falls, 0, bad),
            torch.where(falls, self.cooldown, left),
        )

    def _better(self, now: Tensor, best: Tensor) -> Any:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "rel":
            bound = best * (1.0 + sign * self.threshold)
        else:
            bound = best + sign * self.threshold
        return now > bound if self.mode == "max" else now < bound
