"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import KW_ONLY

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from parallax._compat import kernels
from parallax.optim.hyper import Hyper, Number, counts, plain, resolved
from parallax.optim.kernel import ByKernel
from parallax.optim.lists import How, Lists

__all__ = ["SGD"]


class SGD(ByKernel):
    """Stochastic gradient descent, optionally with momentum.

    As ``torch.optim.SGD``, and its kernels. Nesterov momentum: Sutskever et al. 2013.

    Args:
        dampening: the momentum adds the gradient times ``1 - dampening``.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, grads = Point(torch.zeros(1)), Point(torch.ones(1))
        >>> opt = optim.SGD(lr=0.1, momentum=0.9, nesterov=True)
        >>> point, state = opt.step(point, grads, opt.init(point))
        >>> point.at  # Nesterov's first step is 1 + momentum times as long
        tensor([-0.1900])
    """

    _torch = torch.optim.SGD
    _elementwise = True
    _fused_on = ("cpu", "cuda", "mps", "xpu")
    _fused_halves = False  # torch's kernel for the CPU steps in the wrong direction there
    _takes_sparse = True

    lr: Number = 1e-3
    momentum: Number = 0
    dampening: Number = 0
    weight_decay: Number = 0
    nesterov: bool = False
    _: KW_ONLY
    maximize: bool = False
    foreach: bool | None = None
    differentiable: bool = False
    fused: bool | None = None

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("momentum_buffer",) if counts(h["momentum"]) else ()

    def _eager(self, at: Lists, h: Hyper, step: Tensor, donate: bool = False) -> Lists:
        chosen = h["foreach"] is not None or h["fused"] is not None
        if donate or chosen or h["weight_decay"] != 0 or h["momentum"] != 0 or not at.plain():
            return super()._eager(at, h, step, donate)
        # Out of place this is one pass over memory; a copy and a kernel in place are two.
        rate = h["lr"] if self._fixed else plain(resolved({"lr": h["lr"]}, step))["lr"]
        if isinstance(rate, Tensor):  # on another device
            return super()._eager(at, h, step, donate)
        rate = rate if h["maximize"] else -rate
        at.params = list(kernels.foreach_add(at.params, at.grads, alpha=rate))
        return at

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        # The first gradient enters the momentum undamped: None distinguishes it from later ones.
        return None if counts(h["dampening"]) else torch.zeros_like(param)

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if counts(h["momentum"]) or counts(h["weight_decay"]):  # then all rows change
            at = at.with_dense_gradients()
        buffers = at["momentum_buffer"]
        first = [k for k, buffer in enumerate(buffers) if buffer is None]
        if not first:
            return _step(at, h, how)
        new = at.pick(first)
        new.moments = {"momentum_buffer": [torch.zeros_like(p) for p in new.params]}
        old = at.pick([k for k, buffer in enumerate(buffers) if buffer is not None])
        at.put(_step(new, {**h, "dampening": 0}, how), first)
        if old.params:
            at.put(_step(old, h, how), [k for k in range(len(buffers)) if k not in first])
        return at


def _step(at: Lists, h: Hyper, how: How) -> Lists:
    if how.fused and at.uniform():
        at = at.in_order()
        kernels.fused_sgd(
            at.params, at.grads, at["momentum_buffer"],
            weight_decay=h["weight_decay"], momentum=h["momentum"], lr=h["lr"],
            dampening=h["dampening"], nesterov=h["nesterov"], maximize=h["maximize"],
            is_first_step=False,
        )  # fmt: skip
        return at
    at = at.in_order() if how.fused else at
    buffers = at["momentum_buffer"] or [None] * len(at.params)
    sgd(
        at.params, at.grads, buffers,
        weight_decay=h["weight_decay"], momentum=h["momentum"], lr=h["lr"],
        dampening=h["dampening"], nesterov=h["nesterov"], maximize=h["maximize"],
        foreach=how.foreach, fused=how.fused,
    )  # fmt: skip
    return at
