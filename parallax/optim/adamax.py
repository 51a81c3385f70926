"""Adamax."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch.optim.adamax import adamax

from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["Adamax"]


class Adamax(Optimizer):
    """Adam with the infinity norm.

    As ``torch.optim.Adamax``, and its kernels. Kingma and Ba 2015.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        betas: decay of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the L2 penalty.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        differentiable: let gradients flow through the step.
        capturable: for CUDA graphs: the count of steps lives on the device.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.Adamax

    lr: Number = 2e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0
    foreach: bool | None = None
    _: KW_ONLY
    maximize: bool = False
    differentiable: bool = False
    capturable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_inf")

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        adamax(
            at.params, at.grads, at["exp_avg"], at["exp_inf"], at.steps(how),
            beta1=h["betas"][0], beta2=h["betas"][1], lr=h["lr"], eps=h["eps"],
            weight_decay=h["weight_decay"], maximize=h["maximize"], has_complex=at.complex,
            **how.several,
        )  # fmt: skip
        return at
