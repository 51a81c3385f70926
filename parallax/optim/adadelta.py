"""Adadelta."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch.optim.adadelta import adadelta

from parallax.optim.direct import Direct
from parallax.optim.hyper import Number

__all__ = ["Adadelta"]


class Adadelta(Direct):
    """Steps scaled by running averages of squared gradients and of squared updates.

    As ``torch.optim.Adadelta``, and its kernels. Zeiler 2012.

    Args:
        rho: decay of the averages.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(2)), Point(torch.tensor([1.0, 100.0]))
        >>> opt = optim.Adadelta(eps=1e-4)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # the first step is sqrt(eps / (1 - rho)), whatever the size of the gradient
        tensor([-0.0316, -0.0316])
    """

    _torch = torch.optim.Adadelta
    _elementwise = True
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
