"""Adagrad."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch import Tensor
from torch.optim.adagrad import adagrad

from parallax.optim.hyper import Hyper, Number, beside, counts
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["Adagrad"]


class Adagrad(ByKernel):
    """Steps divided by the root of the sum of squared gradients.

    As ``torch.optim.Adagrad``, and its kernels. Duchi et al. 2011.

    Args:
        lr_decay: how fast the learning rate falls with the steps.
        initial_accumulator_value: the initial value of the sum.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(1)), Point(torch.ones(1))
        >>> opt = optim.Adagrad(lr=1.0)
        >>> state = opt.init(point)
        >>> for _ in range(4):
        ...     point, state = opt.step(point, grads, state)
        >>> point.at  # -(1 + 1/sqrt(2) + 1/sqrt(3) + 1/sqrt(4)): ever shorter steps
        tensor([-2.7845])
    """

    _torch = torch.optim.Adagrad
    _elementwise = True
    _fused_on = ("cpu",)
    _takes_sparse = True

    lr: Number = 1e-2
    lr_decay: Number = 0
    weight_decay: Number = 0
    initial_accumulator_value: Number = 0
    eps: Number = 1e-10
    foreach: bool | None = None
    _: KW_ONLY
    maximize: bool = False
    differentiable: bool = False
    fused: bool | None = None

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("sum",)

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        # Two real numbers if it is complex.
        ones = torch.full_like(param, complex(1, 1) if param.is_complex() else 1.0)
        start: Tensor = ones * beside(h, param)["initial_accumulator_value"]
        return start

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if counts(h["weight_decay"]):  # then all rows change
            at = at.with_dense_gradients()
        at = at.in_order() if how.fused else at
        adagrad(
            at.params, at.grads, at["sum"], at.steps(how),
            lr=h["lr"], lr_decay=h["lr_decay"], weight_decay=h["weight_decay"], eps=h["eps"],
            maximize=h["maximize"], has_complex=at.complex, foreach=how.foreach, fused=how.fused,
            differentiable=how.differentiable,
        )  # fmt: skip
        return at
