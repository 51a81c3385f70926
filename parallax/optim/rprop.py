"""Resilient backpropagation."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch import Tensor
from torch.optim.rprop import rprop

from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["Rprop"]


class Rprop(Optimizer):
    """Steps whose sizes follow the signs of the gradients alone; for full batches.

    As ``torch.optim.Rprop``, and its kernels. Riedmiller and Braun 1993.

    Args:
        lr: the first size of the steps.
        etas: factors of a size when the sign changes and when it does not.
        step_sizes: the smallest and the largest size.
        capturable: for CUDA graphs: the count of steps lives on the device.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        differentiable: let gradients flow through the step.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.Rprop

    lr: Number = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50)
    _: KW_ONLY
    capturable: bool = False
    foreach: bool | None = None
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("prev", "step_size")

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name == "prev":
            return torch.zeros_like(param)
        if param.is_complex():  # two real numbers, of one size each
            start = torch.full_like(param, complex(1, 1))
            return start.mul(h["lr"])
        return torch.ones_like(param).mul(h["lr"])

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        rprop(
            at.params, at.grads, at["prev"], at["step_size"], at.steps(how),
            step_size_min=h["step_sizes"][0], step_size_max=h["step_sizes"][1],
            etaminus=h["etas"][0], etaplus=h["etas"][1], maximize=h["maximize"],
            has_complex=at.complex, **how.several,
        )  # fmt: skip
        return at
