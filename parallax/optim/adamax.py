"""Adamax."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch.optim.adamax import adamax

from parallax.optim.direct import Direct
from parallax.optim.hyper import Number

__all__ = ["Adamax"]


class Adamax(Direct):
    """Adam with the infinity norm.

    As ``torch.optim.Adamax``, and its kernels. Kingma and Ba 2015.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, opt = Point(torch.zeros(1)), optim.Adamax(lr=0.1, betas=(0.9, 0.5))
        >>> state = opt.init(point)
        >>> for grad in (8.0, 1.0):
        ...     point, state = opt.step(point, Point(torch.tensor([grad])), state)
        >>> state.moments["exp_inf"].at  # max(0.5 * 8, 1): the largest gradient, decayed
        tensor([4.])
    """

    _torch = torch.optim.Adamax
    _elementwise = True
    _function = staticmethod(adamax)
    _columns = ("exp_avg", "exp_inf")

    lr: Number = 2e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0
    foreach: bool | None = None
    _: KW_ONLY
    maximize: bool = False
    differentiable: bool = False
    capturable: bool = False
