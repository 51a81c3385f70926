"""NAdam."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor
from torch.optim.nadam import nadam

from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["NAdam"]


class NAdam(Optimizer):
    """Adam with Nesterov momentum.

    As ``torch.optim.NAdam``, and its kernels. Dozat 2016.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        betas: decay of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the L2 penalty.
        momentum_decay: how fast the momentum approaches its value.
        decoupled_weight_decay: decay as ``AdamW`` does.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        capturable: for CUDA graphs: the count of steps lives on the device.
        differentiable: let gradients flow through the step.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.NAdam

    lr: Number = 2e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0
    momentum_decay: Number = 4e-3
    decoupled_weight_decay: bool = False
    _: KW_ONLY
    foreach: bool | None = None
    maximize: bool = False
    capturable: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "mu_product")

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name != "mu_product":
            return super()._fresh(name, param, h)
        return torch.ones((), device=param.device if h["capturable"] else None)

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        nadam(
            at.params, at.grads, at["exp_avg"], at["exp_avg_sq"], at["mu_product"], at.steps(how),
            beta1=h["betas"][0], beta2=h["betas"][1], lr=h["lr"], eps=h["eps"],
            weight_decay=h["weight_decay"], momentum_decay=h["momentum_decay"],
            maximize=h["maximize"],
            decoupled_weight_decay=h["decoupled_weight_decay"], has_complex=at.complex,
            **how.several,
        )  # fmt: skip
        return at
