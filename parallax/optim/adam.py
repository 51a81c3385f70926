"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from parallax._compat import kernels
from parallax.optim.hyper import Hyper, Number
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["Adam", "AdamW"]


class Adam(ByKernel):
    """Adam: steps scaled by running averages of the gradient and its square.

    As ``torch.optim.Adam``, and its kernels. Kingma and Ba 2015; AMSGrad: Reddi et al. 2018.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(2)), Point(torch.tensor([0.01, 100.0]))
        >>> opt = optim.Adam(lr=0.1)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # the first step has the length lr, whatever the size of the gradient
        tensor([-0.1000, -0.1000])
    """

    _torch = torch.optim.Adam
    _elementwise = True
    _fused_on = ("cpu", "cuda", "mps", "xpu")

    lr: Number = 1e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0
    amsgrad: bool = False
    _: KW_ONLY
    foreach: bool | None = None
    maximize: bool = False
    capturable: bool = False
    differentiable: bool = False
    fused: bool | None = None
    decoupled_weight_decay: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return (*("exp_avg", "exp_avg_sq"), *("max_exp_avg_sq",) * bool(h["amsgrad"]))

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        return step_adam(at, h, how, bool(h["decoupled_weight_decay"]))


class AdamW(ByKernel):
    """Adam with decoupled weight decay.

    As ``torch.optim.AdamW``, and its kernels. Loshchilov and Hutter 2019.

    Args:
        weight_decay: each step multiplies a parameter by ``1 - lr * weight_decay``.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.ones(1)), Point(torch.zeros(1))
        >>> opt = optim.AdamW(lr=0.1, weight_decay=0.5)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # decays by lr * weight_decay, though the gradient is zero
        tensor([0.9500])
    """

    _torch = torch.optim.AdamW
    _elementwise = True
    _scales_sums = False
    _fused_on = ("cpu", "cuda", "mps", "xpu")

    lr: Number = 1e-3
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 1e-2
    amsgrad: bool = False
    _: KW_ONLY
    maximize: bool = False
    foreach: bool | None = None
    capturable: bool = False
    differentiable: bool = False
    fused: bool | None = None

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return (*("exp_avg", "exp_avg_sq"), *("max_exp_avg_sq",) * bool(h["amsgrad"]))

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        return step_adam(at, h, how, True)


def step_adam(at: Lists, h: Hyper, how: How, decoupled: bool) -> Lists:
    """Adam's kernel; the fused one is called directly, with one count of steps for all leaves."""
    shared = {
        "amsgrad": bool(h["amsgrad"]),
        "beta1": h["betas"][0],
        "beta2": h["betas"][1],
        "lr": h["lr"],
        "weight_decay": h["weight_decay"],
        "eps": h["eps"],
        "maximize": bool(h["maximize"]),
    }
    if how.fused and at.uniform():
        at = at.in_order()
        columns = at["exp_avg"], at["exp_avg_sq"], at["max_exp_avg_sq"]
        kernel = kernels.fused_adamw if decoupled else kernels.fused_adam
        kernel(at.params, at.grads, *columns, at.steps_after(), **shared)
        return at
    at = at.in_order() if how.fused else at
    before = _divided_by_zero(at, h, how)
    adam(
        at.params, at.grads, at["exp_avg"], at["exp_avg_sq"], at["max_exp_avg_sq"],
        at.steps(how),
        has_complex=at.complex, decoupled_weight_decay=decoupled, fused=how.fused, **shared,
        **how.several,
    )  # fmt: skip
    if before:
        for param, old in zip(at.params, before, strict=True):
            rate = torch.as_tensor(h["lr"], device=param.device)
            param.copy_(torch.where(rate == 0, old, param))
    return at


def _divided_by_zero(at: Lists, h: Hyper, how: How) -> list[Tensor]:
    """Copies of the parameters if the kernel may divide by a rate of zero; otherwise nothing.

    torch's capturable kernel (2.13, 2.14) puts the rate into the denominator. At a rate of zero, as
    at the first step of a warm-up, entries that never had a gradient become nan: zero by zero.
    """
    rate = h["lr"]
    if not how.capturable or how.differentiable or not (isinstance(rate, Tensor) or rate == 0):
        return []
    return [param.clone() for param in at.params]
