"""Lion."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from parallax.optim.formula import LeafFormula, Moments
from parallax.optim.hyper import Hyper, Number

__all__ = ["Lion"]


class Lion(LeafFormula):
    """Steps of one size, in the direction of the sign of a running average of the gradient.

    Chen et al. 2023, algorithm 2, with its decoupled weight decay. A tenth of AdamW's learning
    rate is usual, and ten times its weight decay.

    Args:
        betas: weights of the average: in the step, and in what is kept of it.
        weight_decay: each step multiplies a parameter by ``1 - lr * weight_decay``.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(2)), Point(torch.tensor([0.01, -100.0]))
        >>> opt = optim.Lion(lr=0.1)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # only the sign counts
        tensor([-0.1000,  0.1000])
    """

    _elementwise = True

    lr: Number = 1e-4
    betas: tuple[Any, Any] = (0.9, 0.99)
    weight_decay: Number = 0.0
    _: KW_ONLY
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg",)

    def _leaf(
        self, param: Tensor, grad: Tensor, moments: Moments, h: Hyper, once: Hyper
    ) -> tuple[Tensor, Moments]:
        (beta1, beta2), mean = h["betas"], moments["exp_avg"]
        direction = (mean * beta1 + grad * (1 - beta1)).sign()
        param = param * (1 - h["lr"] * h["weight_decay"]) - h["lr"] * direction
        return param, {"exp_avg": mean * beta2 + grad * (1 - beta2)}
