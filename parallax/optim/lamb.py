"""LAMB."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor

from parallax._compat import shards
from parallax.optim.formula import LeafFormula, Moments
from parallax.optim.hyper import Hyper, Number

__all__ = ["LAMB"]


class LAMB(LeafFormula):
    """Adam's step, scaled for each parameter to its own norm; for large batches.

    You et al. 2020, algorithm 2: the update and the decay together have ``lr`` times the norm of
    the parameter; where either norm is zero the update is not scaled.

    Args:
        weight_decay: this multiple of the parameter is added to Adam's update, before scaling.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.tensor([3.0, 4.0])), Point(torch.tensor([0.0, 7.0]))
        >>> opt = optim.LAMB(lr=0.1, weight_decay=0.0)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # moved by a tenth of its norm, which is 5
        tensor([3.0000, 3.5000])
    """

    lr: Number = 1e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-6
    weight_decay: Number = 0.01
    _: KW_ONLY
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _once(self, age: Tensor, h: Hyper) -> Hyper:
        beta1, beta2 = h["betas"]
        return {"first": 1 - beta1**age, "second": 1 - beta2**age}

    def _leaf(
        self, param: Tensor, grad: Tensor, moments: Moments, h: Hyper, once: Hyper
    ) -> tuple[Tensor, Moments]:
        beta1, beta2 = h["betas"]
        mean = moments["exp_avg"] * beta1 + grad * (1 - beta1)
        square = moments["exp_avg_sq"] * beta2 + grad * grad * (1 - beta2)
        update = (mean / once["first"]) / ((square / once["second"]).sqrt() + h["eps"])
        update = update + param * h["weight_decay"]
        size, length = _norm(param), _norm(update)
        scaled = (size > 0) & (length > 0)
        ratio = torch.where(scaled, size / torch.where(scaled, length, 1.0), 1.0)
        param = param - h["lr"] * (ratio * update)
        return param, {"exp_avg": mean, "exp_avg_sq": square}


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = shards.summed(torch.linalg.vector_norm(tensor))
    return norm
