"""Gradient accumulation: one step of an optimizer per several gradients."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_optimizer
from parallax.optim.checks import check_state, gather, open_model
from parallax.optim.choose import choose
from parallax.optim.derivatives import is_differentiable, recorded
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits
from parallax.tree import core

__all__ = ["Accumulate", "Accumulated"]

M = TypeVar("M")


class Accumulated(Module):
    """The state of ``Accumulate``.

    Attributes:
        inner: the optimizer's own state.
        sum: the gradients so far, a module of the model's skeleton.
        count: how many there are, a tensor of no dimension.
    """

    inner: Module
    sum: Module
    count: Buffer


@hint_at_habits
class Accumulate:
    """An optimizer that steps once per ``every`` gradients, with their mean.

    Put ``chain`` inside, so that its parts see the mean, and run when there is a step.

    Args:
        opt: the optimizer that steps.
        every: how many gradients make a step.

    Raises:
        ValueError: if ``every`` is less than one.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.Accumulate(optim.SGD(lr=1.0), every=2), Point(torch.zeros(()))
        >>> state = opt.init(point)
        >>> for grad in (1.0, 3.0):
        ...     point, state = opt.step(point, Point(torch.tensor(grad)), state)
        >>> point.at
        tensor(-2.)
    """

    _leaves_out_steps = True  # which parts of a chain must not stand after

    def __init__(self, opt: Any, every: int) -> None:
        if type(every) is not int or every < 1:
            raise ValueError(
                f"Accumulate: every must be an int of at least 1, got {every!r}. "
                f"Write optim.Accumulate(opt, every=4)"
            )
        check_optimizer("Accumulate", "opt", opt)
        self.opt = opt
        self.every = every

    @property
    def _differentiable(self) -> bool:
        return is_differentiable(self.opt)

    def init(self, model: Any) -> Accumulated:
        """The state before the first gradient.

        Args:
            model: an initialised module.

        Returns:
            The state.
        """
        inner = self.opt.init(model)
        with torch.no_grad():
            zeros = core.map(_zero, model)
        return Accumulated(inner, zeros, torch.zeros((), dtype=torch.int32))

    def step(
        self, model: M, grads: Any, state: Accumulated, *, donate: bool = False
    ) -> tuple[M, Accumulated]:
        """Adds gradients, and steps if there are enough.

        Args:
            model: a module.
            grads: gradients; a leaf that has a hole in the last of them is not stepped.
            state: what ``init`` or the last ``step`` returned.
            donate: let the optimizer reuse the memory of model and state when it steps.

        Returns:
            The model, and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        what = "optim.Accumulate.step"
        check_donation(what, donate, self._differentiable)
        check_state(what, state, Accumulated)
        leaves, part = open_model(what, model)
        gather(what, model, leaves, part, grads)
        with recorded(self._differentiable):
            return self._added(what, model, grads, state, donate)

    def _added(
        self, what: str, model: M, grads: Any, state: Accumulated, donate: bool
    ) -> tuple[M, Accumulated]:
        total = core.map(torch.add, state.sum, grads)
        count = state.count + 1
        traced = dynamo.is_compiling() or functorch.transform_active()
        if not traced and int(count) < self.every:
            return model, Accumulated(state.inner, total, count)
        mean = core.map(lambda g, s: (s / self.every).to(g.dtype), grads, total)
        zeros = core.map(torch.zeros_like, total)
        if not traced:
            model, inner = self.opt.step(model, mean, state.inner, donate=donate)
            return model, Accumulated(inner, zeros, torch.zeros_like(count))
        done = count == self.every
        stepped = self.opt.step(model, mean, state.inner)
        model, inner = choose(what, done, stepped, (model, state.inner))
        kept = choose(what, done, zeros, total)
        return model, Accumulated(inner, kept, torch.where(done, torch.zeros_like(count), count))

    def __repr__(self) -> str:
        return f"Accumulate({self.opt!r}, every={self.every})"


def _zero(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf
