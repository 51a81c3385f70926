"""RAdam."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor
from torch.optim.radam import radam

from parallax._compat import functorch
from parallax.optim.direct import Direct
from parallax.optim.hyper import Hyper, Number, counts
from parallax.optim.lists import How, Lists

__all__ = ["RAdam"]


class RAdam(Direct):
    """Adam with a rectified variance, which needs no warmup.

    As ``torch.optim.RAdam``, and its kernels. Liu et al. 2020.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(2)), Point(torch.tensor([0.01, 100.0]))
        >>> opt = optim.RAdam(lr=0.1)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # not scaled yet: the variance of one gradient is unknown
        tensor([-1.0000e-03, -1.0000e+01])
    """

    _torch = torch.optim.RAdam
    _elementwise = True
    _function = staticmethod(radam)
    _columns = ("exp_avg", "exp_avg_sq")

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

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        # The kernel branches on a leaf's number of steps; under vmap, members may differ.
        if how.differentiable and functorch.vmap_active():
            return _mapped(at, h, at.steps(how))
        return super()._kernel(at, h, how)


def _mapped(at: Lists, h: Hyper, ages: list[Tensor]) -> Lists:
    """The numbers of the kernel, out of place and without branches."""
    (beta1, beta2), lr, decay = h["betas"], h["lr"], h["weight_decay"]
    longest = 2 / (1 - beta2) - 1

    def length(age: Tensor) -> Any:
        """Of the moving average."""
        return longest - 2 * age * beta2**age / (1 - beta2**age)

    for k, before in enumerate(ages):
        param, grad, mean, square = [
            torch.view_as_real(x) if x.is_complex() else x
            for x in (at.params[k], at.grads[k], at["exp_avg"][k], at["exp_avg_sq"][k])
        ]
        age = before + 1
        grad = -grad if h["maximize"] else grad
        if counts(decay) and h["decoupled_weight_decay"]:
            param = param * (1 - lr * decay)
        elif counts(decay):
            grad = grad + param * decay
        mean = mean + (grad - mean) * (1 - beta1)
        square = square * beta2 + grad * grad * (1 - beta2)
        old = length(age) > 5
        # Of few steps the derivatives there are not finite: such members take other numbers.
        some_age, some_square = torch.where(old, age, 1e4), torch.where(old, square, 1.0)
        rho = length(some_age)
        ratio = (rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)
        rectified = (ratio * (1 - beta2**some_age)).sqrt() / (some_square.sqrt() + h["eps"])
        param = param - lr * mean / (1 - beta1**age) * torch.where(old, rectified, 1.0)
        for column, made in ((at.params, param), (at["exp_avg"], mean), (at["exp_avg_sq"], square)):
            like = column[k]
            column[k] = torch.view_as_complex(made) if like.is_complex() else made.to(like.dtype)
    return at
