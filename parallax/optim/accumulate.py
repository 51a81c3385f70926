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
from parallax.tree.donated import mark
from parallax.tree.memory import PLAIN, make_private

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
            donate: add the gradients in the memory of ``state``, which is gone afterwards, and let
                the optimizer reuse the memory of the model when it steps; as in other optimizers'
                ``step``. The state is gone, too, if the optimizer raises. No more is held than by
                gradients that add up in ``.grad``.

        Returns:
            The model, and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        what = "optim.Accumulate.step"
        in_place = check_donation(what, donate, self._differentiable)
        check_state(what, state, Accumulated)
        leaves, part = open_model(what, model)
        gather(what, model, leaves, part, grads)
        with recorded(self._differentiable):
            if in_place:
                return self._added_in_place(model, grads, state)
            return self._added(what, model, grads, state)

    def _added(self, what: str, model: M, grads: Any, state: Accumulated) -> tuple[M, Accumulated]:
        total = core.map(torch.add, state.sum, grads)
        count = state.count + 1
        traced = dynamo.is_compiling() or functorch.transform_active()
        if not traced and int(count) < self.every:
            return model, Accumulated(state.inner, total, count)
        mean = core.map(lambda g, s: (s / self.every).to(g.dtype), grads, total)
        zeros = core.map(torch.zeros_like, total)
        if not traced:
            model, inner = self.opt.step(model, mean, state.inner)
            return model, Accumulated(inner, zeros, torch.zeros_like(count))
        done = count == self.every
        stepped = self.opt.step(model, mean, state.inner)
        model, inner = choose(what, done, stepped, (model, state.inner))
        kept = choose(what, done, zeros, total)
        return model, Accumulated(inner, kept, torch.where(done, torch.zeros_like(count), count))

    def _added_in_place(self, model: M, grads: Any, state: Accumulated) -> tuple[M, Accumulated]:
        """As ``_added`` in eager code. The state is gone, whatever happens from the sum on."""
        old, inner, count = state.sum, state.inner, state.count + 1
        total = _sum_in_place(old, grads)
        vars(state)["sum"] = None  # else the caller's variable would hold it during the step
        mark(None, state)
        mark(old)
        del old
        if int(count) < self.every:
            return model, Accumulated(inner, total, count)
        mean = core.map(self._mean_in_place, grads, total)
        empty = core.map(_without_memory, total)
        del total
        model, inner = self.opt.step(model, mean, inner, donate=True)
        del mean  # the optimizer may have kept it, so it is not set to zero
        zeros = core.map(torch.zeros_like, empty)
        return model, Accumulated(inner, zeros, torch.zeros_like(count))

    def _mean_in_place(self, grad: Tensor, total: Tensor) -> Tensor:
        if total.dtype == grad.dtype:
            return total.div_(self.every)
        return (total / self.every).to(grad.dtype)

    def __repr__(self) -> str:
        return f"Accumulate({self.opt!r}, every={self.every})"


def _zero(leaf: Any) -> Any:
    return torch.zeros_like(leaf) if isinstance(leaf, Tensor) else leaf


def _sum_in_place(sums: Any, grads: Any) -> Any:
    """The sums with the gradients added, written where a sum is alone in its memory."""
    pairs: list[tuple[Tensor, Tensor]] = []

    def note(total: Tensor, grad: Tensor) -> Tensor:
        pairs.append((total, grad))
        return total

    core.map(note, sums, grads)
    if not all([_adds_in_place(total, grad) for total, grad in pairs]):
        return core.map(torch.add, sums, grads)
    totals, given = [total for total, _ in pairs], [grad for _, grad in pairs]
    make_private(range(len(totals)), [totals], given)
    for total, grad in zip(totals, given, strict=True):
        total.add_(grad)
    done = iter(totals)
    return core.map(lambda *_: next(done), sums, grads)


def _adds_in_place(total: Tensor, grad: Tensor) -> bool:
    """Whether ``total.add_(grad)`` is ``total + grad``, of tensors of torch's own classes."""
    plain = type(total) in PLAIN and type(grad) in PLAIN and total.layout is torch.strided
    return plain and (total.shape, total.dtype) == (grad.shape, grad.dtype)


def _without_memory(leaf: Tensor) -> Tensor:
    """A tensor of the same shape, dtype and device that holds one number."""
    if type(leaf) not in PLAIN or leaf.layout is not torch.strided:
        return leaf
    return leaf.new_zeros(()).expand(leaf.shape)
