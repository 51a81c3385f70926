"""Resilient backpropagation."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch import Tensor
from torch.optim.rprop import rprop

from parallax.optim.direct import Direct
from parallax.optim.hyper import Hyper, Number, beside
from parallax.optim.lists import How, Lists

__all__ = ["Rprop"]


class Rprop(Direct):
    """Steps whose sizes follow the signs of the gradients alone; for full batches.

    As ``torch.optim.Rprop``, and its kernels. Riedmiller and Braun 1993.

    Args:
        lr: the first size of the steps.
        etas: factors of a size when the sign changes and when it does not.
        step_sizes: the smallest and the largest size.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, opt = Point(torch.zeros(1)), optim.Rprop(lr=0.1)
        >>> state = opt.init(point)
        >>> for grad in (3.0, 0.2):  # only the signs count
        ...     point, state = opt.step(point, Point(torch.tensor([grad])), state)
        >>> point.at  # 0.1, and then 1.2 times as far, as the sign is the same
        tensor([-0.2200])
    """

    _torch = torch.optim.Rprop
    _elementwise = True
    _function = staticmethod(rprop)
    _columns = ("prev", "step_size")

    lr: Number = 1e-2
    etas: tuple[float, float] = (0.5, 1.2)
    step_sizes: tuple[float, float] = (1e-6, 50)
    _: KW_ONLY
    capturable: bool = False
    foreach: bool | None = None
    maximize: bool = False
    differentiable: bool = False

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name == "prev":
            return torch.zeros_like(param)
        # Two real numbers, of one size each, if it is complex.
        start = torch.full_like(param, complex(1, 1) if param.is_complex() else 1.0)
        return start.mul(beside(h, param)["lr"])

    def _full(self, at: Lists, h: Hyper) -> Lists:
        # By the rate at the first step of a leaf, which is another than that of init in a schedule.
        return super()._full(at, h).begun("step_size", lambda name, p: self._first(name, p, h))

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        # The kernel takes no lr: it is the initial size of the steps, see _fresh.
        return super()._kernel(at, {k: v for k, v in h.items() if k != "lr"}, how)
