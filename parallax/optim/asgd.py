"""Averaged stochastic gradient descent."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.asgd import asgd

from parallax.optim.direct import Direct
from parallax.optim.hyper import Hyper, Number, counts
from parallax.optim.lists import How, Lists

__all__ = ["ASGD"]


class ASGD(Direct):
    """Stochastic gradient descent with a running mean of the parameters.

    As ``torch.optim.ASGD``, and its kernels. Polyak and Juditsky 1992.
    The mean is ``state.moments["ax"]``.

    Args:
        lambd: decay: each step multiplies a parameter by ``1 - lambd * eta``, where ``eta`` is the
            learning rate of that step.
        alpha: the exponent with which the learning rate falls.
        t0: after how many steps averaging starts.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(1)), Point(torch.ones(1))
        >>> opt = optim.ASGD(lr=0.5, lambd=0.0, t0=0)
        >>> state = opt.init(point)
        >>> for _ in range(3):
        ...     point, state = opt.step(point, grads, state)
        >>> point.at, state.moments["ax"].at  # the mean of -1 and -1.5: not of the first point
        (tensor([-1.5000]), tensor([-1.2500]))
    """

    _torch = torch.optim.ASGD
    _elementwise = True
    _function = staticmethod(asgd)
    _columns = ("ax", "mu", "eta")

    lr: Number = 1e-2
    lambd: Number = 1e-4
    alpha: Number = 0.75
    t0: Number = 1e6
    weight_decay: Number = 0
    foreach: bool | None = None
    maximize: bool = False
    differentiable: bool = False
    capturable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("mu", "ax", "eta")

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name == "ax":
            return torch.zeros_like(param)
        start = h["lr"] if name == "eta" else 1.0
        return torch.as_tensor(start, dtype=torch.float32, device=param.device).clone()

    def _full(self, at: Lists, h: Hyper) -> Lists:
        # By the rate at the first step of a leaf, which is another than that of init in a schedule.
        return super()._full(at, h).begun("eta", lambda name, p: self._first(name, p, h))

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        # The kernel overwrites what derivatives need, and branches on whether a leaf is averaged.
        # Its form for CUDA graphs, which is the one that is traced, does neither.
        if (how.differentiable and not how.capturable) or at.on_meta():
            return _differentiable(at, h, at.steps(how))
        return super()._kernel(at, h, how)


def _differentiable(at: Lists, h: Hyper, ages: list[Tensor]) -> Lists:
    """The numbers of the kernel, out of place and without branches, as members of a vmap differ."""
    lr, lambd = h["lr"], h["lambd"]
    for k, (param, age) in enumerate(zip(at.params, ages, strict=True)):
        mu, mean, eta = at["mu"][k], at["ax"][k], at["eta"][k]
        grad = -at.grads[k] if h["maximize"] else at.grads[k]
        if counts(h["weight_decay"]):
            grad = grad + param * h["weight_decay"]
        stepped = (param * (1 - lambd * eta) - grad * eta).to(param.dtype)
        averaged = torch.where(mu == 1, stepped, mean + (stepped - mean) * mu)
        averaging = age + 1 - h["t0"]  # for how many steps
        at.params[k] = stepped
        at["ax"][k] = averaged.to(mean.dtype)
        at["eta"][k] = (lr / (1 + lambd * lr * (age + 1)) ** h["alpha"]).to(eta)
        at["mu"][k] = (1 / torch.where(averaging > 1, averaging, 1.0)).to(mu)
    return at
