"""RMSprop."""

from __future__ import annotations

import torch
from torch.optim.rmsprop import rmsprop

from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists

__all__ = ["RMSprop"]


class RMSprop(Optimizer):
    """Steps divided by the root of a running average of squared gradients.

    As ``torch.optim.RMSprop``, and its kernels. Hinton 2012; centred: Graves 2013.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        alpha: decay of the average.
        eps: added to the denominator.
        weight_decay: factor of the L2 penalty.
        momentum: factor of the last update.
        centered: divide by the standard deviation instead.
        capturable: for CUDA graphs: the count of steps lives on the device.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        differentiable: let gradients flow through the step.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.RMSprop

    lr: Number = 1e-2
    alpha: Number = 0.99
    eps: Number = 1e-8
    weight_decay: Number = 0
    momentum: Number = 0
    centered: bool = False
    capturable: bool = False
    foreach: bool | None = None
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        momentum, centered = h["momentum"] != 0, bool(h["centered"])
        return ("square_avg", *("momentum_buffer",) * momentum, *("grad_avg",) * centered)

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        rmsprop(
            at.params, at.grads, at["square_avg"], at["grad_avg"], at["momentum_buffer"],
            at.steps(how),
            lr=h["lr"], alpha=h["alpha"], eps=h["eps"], weight_decay=h["weight_decay"],
            momentum=h["momentum"], centered=h["centered"], maximize=h["maximize"],
            has_complex=at.complex, **how.several,
        )  # fmt: skip
        return at
