"""Adadelta."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch.optim.adadelta import adadelta

from parallax.optim.direct import Direct
from parallax.optim.hyper import Number

__all__ = ["Adadelta"]


class Adadelta(Direct):
    """Steps in the units of the parameters, from running averages.

    As ``torch.optim.Adadelta``, and its kernels. Zeiler 2012.

    Args:
        rho: decay of the averages.
    """

    _torch = torch.optim.Adadelta
    _function = staticmethod(adadelta)
    _columns = ("square_avg", "acc_delta")

    lr: Number = 1.0
    rho: Number = 0.9
    eps: Number = 1e-6
    weight_decay: Number = 0
    foreach: bool | None = None
    _: KW_ONLY
    capturable: bool = False
    maximize: bool = False
    differentiable: bool = False
