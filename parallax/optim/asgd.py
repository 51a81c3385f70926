"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.asgd import asgd

from parallax._compat import functorch
from parallax.optim.base import Optimizer
from parallax.optim.hyper import Hyper, Number
from parallax.optim.lists import How, Lists
from parallax.optim.scalars import Answered, Multiplied, WrittenApart

__all__ = ["ASGD"]


class ASGD(Optimizer):
    """Stochastic gradient descent with a running mean of the parameters.

    As ``torch.optim.ASGD``, and its kernels. Polyak and Juditsky 1992.
    The mean is ``state.moments["ax"]``.

    Args:
        lr: learning rate: a number, a tensor of no dimension, or a function of the step.
        lambd: decay.
        alpha: power of the fall of the learning rate.
        t0: the step at which averaging starts.
        weight_decay: factor of the L2 penalty.
        foreach: torch's kernels over lists; ``None`` lets torch choose.
        maximize: climb instead of descending.
        differentiable: let gradients flow through the step.
        capturable: for CUDA graphs: the count of steps lives on the device.
        groups: other hyper-parameters for some leaves: conditions of ``tree.select`` to dicts.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.
    """

    _torch = torch.optim.ASGD

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

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        if how.differentiable and functorch.vmap_active():
            return self._mapped(at, h, how)
        return self._run_kernel(at, h, how)

    def _mapped(self, at: Lists, h: Hyper, how: How) -> Lists:
        """As the kernel, which asks each leaf whether it is averaged: under vmap members differ."""
        averaged = at.private()
        params: list[Any] = [param.as_subclass(Multiplied) for param in averaged.params]
        averaged.params = params
        with Answered(False) as asked:
            at = self._run_kernel(at, h, how)
        with Answered(True):
            averaged = self._run_kernel(averaged, h, how)
        # It asks twice: whether the mean is over several parameters, and will be.
        for name, answers in (("ax", asked.questions[::2]), ("mu", asked.questions[1::2])):
            triples = zip(answers, averaged[name], at[name], strict=True)
            at.moments[name] = [torch.where(yes, one, other) for yes, one, other in triples]
        return at

    def _run_kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        apart = how.differentiable and not how.capturable  # the mean is formed, then mu is written
        mus = [mu.as_subclass(WrittenApart) for mu in at["mu"]] if apart else at["mu"]
        asgd(
            at.params, at.grads, at["ax"], mus, at["eta"], at.steps(how),
            lambd=h["lambd"], lr=h["lr"], t0=h["t0"], alpha=h["alpha"],
            weight_decay=h["weight_decay"], maximize=h["maximize"], has_complex=at.complex,
            **how.several,
        )  # fmt: skip
        if apart:
            at.moments["mu"] = [mu.written for mu in mus]
        return at
