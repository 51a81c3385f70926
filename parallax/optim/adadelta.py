"""Adadelta."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch.optim.adadelta import adadelta

from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["Adadelta"]


class Adadelta(Optimizer):
    """Steps in the units of the parameters, from running averages.

    As ``torch.optim.Adadelta``, and its kernels. Zeiler 2012.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        rho: decay of the averages.
        eps: added to the denominator.
        weight_decay: factor of the L2 penalty.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        capturable: for CUDA graphs: the count of steps lives on the device.
        maximize: climb instead of descending.
        differentiable: let gradients flow through the step.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.Adadelta

    lr: Number = 1.0
    rho: Number = 0.9
    eps: Number = 1e-6
    weight_decay: Number = 0
    foreach: bool | None = None
    _: KW_ONLY
    capturable: bool = False
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        adadelta(
            at.params, at.grads, at["square_avg"], at["acc_delta"], at.steps(how),
            lr=h["lr"], rho=h["rho"], eps=h["eps"], weight_decay=h["weight_decay"],
            maximize=h["maximize"], has_complex=at.complex, **how.several,
        )  # fmt: skip
        return at
