"""RAdam."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor
from torch.optim.radam import radam

from parallax._compat import functorch
from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists
from parallax.optim.scalars import Answered, Multiplied

__all__ = ["RAdam"]


class RAdam(Optimizer):
    """Adam with a rectified variance, which needs no warmup.

    As ``torch.optim.RAdam``, and its kernels. Liu et al. 2020.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        betas: decay of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: factor of the L2 penalty.
        decoupled_weight_decay: decay as ``AdamW`` does.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        capturable: for CUDA graphs: the count of steps lives on the device.
        differentiable: let gradients flow through the step.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.RAdam

    lr: Number = 1e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0
    decoupled_weight_decay: bool = False
    _: KW_ONLY
    foreach: bool | None = None
    maximize: bool = False
    capturable: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if how.differentiable and functorch.vmap_active():
            return self._mapped(at, h, how)
        return self._run_kernel(at, h, how, at.steps(how))

    def _mapped(self, at: Lists, h: Hyper, how: How) -> Lists:
        """As the kernel, which asks each leaf whether it is old: under vmap members may differ."""
        rectified = at.private()
        params: list[Any] = [param.as_subclass(Multiplied) for param in rectified.params]
        rectified.params = params
        with Answered(False) as asked:
            at = self._run_kernel(at, h, how, at.steps(how))
        old, second = asked.questions, rectified["exp_avg_sq"]
        # A young member goes there with an old one's numbers: its own have no finite derivatives.
        second[:] = [torch.where(is_old, m, 1.0) for is_old, m in zip(old, second, strict=True)]
        ages = [torch.where(o, age, 1e4) for o, age in zip(old, at.steps(how), strict=True)]
        with Answered(True):
            rectified = self._run_kernel(rectified, h, how, ages)
        triples = zip(old, rectified.params, at.params, strict=True)
        at.params = [torch.where(is_old, one, other) for is_old, one, other in triples]
        return at

    def _run_kernel(self, at: Lists, h: Hyper, how: How, steps: list[Tensor]) -> Lists:
        radam(
            at.params, at.grads, at["exp_avg"], at["exp_avg_sq"], steps,
            beta1=h["betas"][0], beta2=h["betas"][1], lr=h["lr"], eps=h["eps"],
            weight_decay=h["weight_decay"], maximize=h["maximize"],
            decoupled_weight_decay=h["decoupled_weight_decay"], has_complex=at.complex,
            **how.several,
        )  # fmt: skip
        return at
