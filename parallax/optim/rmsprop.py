"""RMSprop."""

from __future__ import annotations

import torch
from torch.optim.rmsprop import rmsprop

from parallax.optim.direct import Direct
from parallax.optim.hyper import Hyper, Number, counts

__all__ = ["RMSprop"]


class RMSprop(Direct):
    """Steps divided by the root of a running average of squared gradients.

    As ``torch.optim.RMSprop``, and its kernels. Hinton 2012; centred: Graves 2013.

    Args:
        alpha: decay of the average.
        centered: divide by the standard deviation instead.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(2)), Point(torch.tensor([1.0, 100.0]))
        >>> opt = optim.RMSprop(lr=0.01, alpha=0.75)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # lr / sqrt(1 - alpha), whatever the size of the gradient
        tensor([-0.0200, -0.0200])
    """

    _torch = torch.optim.RMSprop
    _elementwise = True
    _function = staticmethod(rmsprop)
    _columns = ("square_avg", "grad_avg", "momentum_buffer")

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
        momentum, centered = counts(h["momentum"]), bool(h["centered"])
        return ("square_avg", *("momentum_buffer",) * momentum, *("grad_avg",) * centered)
