"""NAdam."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor
from torch.optim.nadam import nadam

from parallax.optim.direct import Direct
from parallax.optim.hyper import Hyper, Number

__all__ = ["NAdam"]


class NAdam(Direct):
    """Adam with Nesterov momentum.

    As ``torch.optim.NAdam``, and its kernels. Dozat 2016.

    Args:
        momentum_decay: how fast the momentum approaches its value.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> for opt in (optim.Adam(lr=0.1), optim.NAdam(lr=0.1)):
        ...     point = Point(torch.zeros(1))
        ...     state = opt.init(point)
        ...     for grad in (1.0, -1.0):  # NAdam follows the change of sign sooner
        ...         point, state = opt.step(point, Point(torch.tensor([grad])), state)
        ...     print(point.at)
        tensor([-0.0947])
        tensor([-0.0362])
    """

    _torch = torch.optim.NAdam
    _elementwise = True
    _function = staticmethod(nadam)
    _columns = ("exp_avg", "exp_avg_sq", "mu_product")

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

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name != "mu_product":
            return super()._fresh(name, param, h)
        return torch.ones((), device=param.device if h["capturable"] else None)
