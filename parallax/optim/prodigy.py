"""Prodigy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from parallax.optim.formula import (
    Formula,
    Moments,
    check_range,
    closed,
    opened,
    wide_for,
    written,
)
from parallax.optim.hyper import Hyper, Number, beside, number_like, resolved
from parallax.optim.lists import Lists

__all__ = ["Prodigy"]

_OF_A_GROUP = ("weight_decay", "eps")


class Prodigy(Formula):
    """Adam that finds its learning rate itself.

    Mishchenko and Defazio 2024, as their program: ``d``, the estimated distance to the solution,
    multiplies the rate, and grows as the gradients point away from where training began. It is one
    number for all leaves, ``state.numbers["d"]``.

    Args:
        lr: multiplies the rate that is found; leave it at 1, or give it a schedule.
        beta3: decay of the estimate; ``None`` for the root of the second of ``betas``.
        weight_decay: each step multiplies a parameter by ``1 - d * lr * weight_decay``.
        decoupled_weight_decay: if ``False``, the decay is an L2 penalty.
        use_bias_correction: correct the averages as Adam does.
        safeguard_warmup: leave the rate out of the denominator of the estimate, for warm-ups.
        d0: the first ``d``.
        d_coef: factor of the estimate.
        growth_rate: the most by which ``d`` grows in a step.
        groups: other ``weight_decay`` and ``eps`` for some leaves.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.Prodigy(), Point(torch.tensor(4.0))
        >>> state = opt.init(point)
        >>> for _ in range(150):
        ...     grads = func.grad(lambda p: (p.at - 1).square())(point)
        ...     point, state = opt.step(point, grads, state)
        >>> bool((point.at - 1).abs() < 0.1)
        True
    """

    _positive = ("d0", "d_coef", "growth_rate")

    lr: Number = 1.0
    betas: tuple[Any, Any] = (0.9, 0.999)
    beta3: float | None = None
    eps: Number = 1e-8
    weight_decay: Number = 0.0
    _: KW_ONLY
    decoupled_weight_decay: bool = True
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: float = 1e-6
    d_coef: float = 1.0
    growth_rate: float = math.inf
    maximize: bool = False
    differentiable: bool = False

    def _check_values(self, hyper: Hyper) -> None:
        super()._check_values(hyper)
        beta3 = hyper["beta3"]
        check_range("beta3", beta3, beta3 is None or 0 <= beta3 < 1, "from 0 to below 1", None)
        for group in self._groups:
            for name in group.names:
                if name not in _OF_A_GROUP:
                    raise ValueError(
                        f"{name} holds for all leaves, since one d is found for them all. Write "
                        f"Prodigy({name}=...); to leave some leaves alone freeze them"
                    )

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "s", "p0")

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        return param.clone() if name == "p0" else torch.zeros_like(param)

    def _numbers(self, leaf: Any) -> dict[str, Tensor]:
        start = self.hyper["d0"]
        kind = {"dtype": wide_for(leaf), "device": leaf.device}
        return {
            "d": torch.full((), start, **kind),
            "d_max": torch.full((), start, **kind),
            "d_numerator": torch.zeros((), **kind),
        }

    def _advance_all(
        self,
        rows: Sequence[Lists],
        hypers: Sequence[Hyper],
        step: Tensor,
        numbers: Mapping[str, Tensor],
        donate: bool,
    ) -> tuple[list[Lists], Mapping[str, Tensor]]:
        shared = resolved(self.hyper, step)
        found = _Found(shared, step, numbers)
        groups = [resolved(h, step) for h in hypers]
        rows = [self._full(at, h) for at, h in zip(rows, groups, strict=True)]
        averaged = []
        for at, h in zip(rows, groups, strict=True):
            columns: list[Moments] = []
            for k, (param, grad) in enumerate(zip(at.params, at.grads, strict=True)):
                held = {name: opened(column[k]) for name, column in at.moments.items()}
                down = -opened(grad) if shared["maximize"] else opened(grad)
                columns.append(found.average(opened(param), down, held, beside(h, param)))
            averaged.append(columns)
        found.estimate()
        made = []
        for at, h, columns in zip(rows, groups, averaged, strict=True):
            params, moments = list(at.params), {n: list(c) for n, c in at.moments.items()}
            for k, (param, held) in enumerate(zip(at.params, columns, strict=True)):
                params[k] = closed(found.moved(opened(param), held, beside(h, param)), param)
                for name, moment in held.items():
                    moments[name][k] = closed(moment, at.moments[name][k])
            made.append(written(at, params, moments, donate))
        return made, found.numbers()


class _Found:
    """The estimate of ``d`` in one step, as the leaves are gone through."""

    def __init__(self, h: Hyper, step: Tensor, numbers: Mapping[str, Tensor]) -> None:
        self.d, self.d_max = numbers["d"], numbers["d_max"]
        self.h = h = beside(h, self.d)
        self.beta1, self.beta2 = h["betas"]
        self.beta3 = self.beta2**0.5 if h["beta3"] is None else h["beta3"]
        self.rate = number_like(h["lr"], self.d)
        correction: Any = 1.0
        if h["use_bias_correction"]:
            age = (step + 1).to(self.d)
            correction = (1 - self.beta2**age) ** 0.5 / (1 - self.beta1**age)
        self.d_rate = self.d * self.rate * correction
        self.before = numbers["d_numerator"]
        self.numerator, self.denominator = self.before * self.beta3, torch.zeros_like(self.d)

    def average(self, param: Tensor, grad: Tensor, held: Moments, h: Hyper) -> Moments:
        """The next moments of a leaf, which goes into the estimate."""
        if not self.h["decoupled_weight_decay"]:
            grad = grad + param * h["weight_decay"]
        d, d_rate = self.d.to(param.device), self.d_rate.to(param.device)
        (beta1, beta2), beta3 = h["betas"], beside({"beta3": self.beta3}, param)["beta3"]
        weight = d / h["d0"] * (d if self.h["safeguard_warmup"] else d_rate)
        made = {
            "exp_avg": held["exp_avg"] * beta1 + grad * (d * (1 - beta1)),
            "exp_avg_sq": held["exp_avg_sq"] * beta2 + grad * grad * (d * d * (1 - beta2)),
            "s": held["s"] * beta3 + grad * weight,
        }
        moves = self.rate.to(param.device) > 0  # a rate of zero changes nothing
        made = {name: torch.where(moves, made[name], held[name]) for name in made}
        product = (grad * (held["p0"] - param)).sum().to(self.d)
        self.numerator = self.numerator + self.d / self.h["d0"] * self.d_rate * product
        self.denominator = self.denominator + made["s"].abs().sum().to(self.d)
        return {**made, "p0": held["p0"]}

    def estimate(self) -> None:
        """Estimates ``d``, if any leaf has ever had a gradient and the rate is not zero."""
        moves = (self.denominator > 0) & (self.rate > 0)
        estimate = self.h["d_coef"] * self.numerator / torch.where(moves, self.denominator, 1.0)
        d = torch.where(self.d == self.h["d0"], torch.maximum(self.d, estimate), self.d)
        d_max = torch.maximum(self.d_max, estimate)
        if math.isinf(self.h["growth_rate"]):
            d = d_max
        else:
            d = torch.minimum(d_max, d * self.h["growth_rate"])
        self.d, self.d_max = torch.where(moves, d, self.d), torch.where(moves, d_max, self.d_max)
        self.numerator = torch.where(moves, self.numerator, self.before)
        self.d_rate = torch.where(moves, self.d_rate, 0.0)

    def moved(self, param: Tensor, held: Moments, h: Hyper) -> Tensor:
        """A leaf after the step."""
        d, d_rate = self.d.to(param.device), self.d_rate.to(param.device)
        update = held["exp_avg"] / (held["exp_avg_sq"].sqrt() + d * h["eps"])
        if self.h["decoupled_weight_decay"]:
            update = update + h["weight_decay"] * param
        made: Tensor = param - d_rate * update
        return made

    def numbers(self) -> dict[str, Tensor]:
        """What is kept for the next step."""
        return {"d": self.d, "d_max": self.d_max, "d_numerator": self.numerator}
