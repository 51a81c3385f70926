"""Gradient accumulation: one step of an optimizer per several gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax._errors.arguments import answered, shown
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.core.registry import flatten_module
from parallax.optim.arguments import check_optimizer
from parallax.optim.checks import check_state, gather, open_model
from parallax.optim.choose import choose
from parallax.optim.derivatives import is_differentiable, recorded
from parallax.optim.donate import check_donation, check_takes_donation
from parallax.optim.habits import hint_at_habits
from parallax.optim.saved import Constants, Tensors, below, shaped
from parallax.optim.sparse_adam import SparseAdam
from parallax.optim.state import around, kept_for
from parallax.tree import core
from parallax.tree.donated import mark
from parallax.tree.memory import PLAIN, make_private
from parallax.tree.mixing import refuse_mixed

__all__ = ["Accumulate", "Accumulated"]

M = TypeVar("M")


class Accumulated(Module):
    """The state of ``Accumulate``.

    Attributes:
        inner: the optimizer's own state.
        sum: the gradients so far, a module of the model's skeleton with holes where there were
            none and nothing is trained.
        count: how many there are, a tensor of no dimension.

    Example:
        >>> from parallax import nn, optim
        >>> opt = optim.Accumulate(optim.Adam(), 4)
        >>> state: optim.Accumulated = opt.init(nn.Linear(2, 1).initialize(0))
        >>> int(state.count)
        0
    """

    inner: Module
    sum: Module
    count: Buffer

    def __as_saved__(self, constants: Constants, tensors: Tensors) -> Accumulated:
        del constants
        return Accumulated(
            self.inner, shaped(self.sum, below(tensors, "sum"), self.count.device), self.count
        )


@hint_at_habits
class Accumulate:
    """An optimizer that steps once per ``every`` gradients, with their mean.

    Put ``chain`` inside, so that its parts see the mean, and run when there is a step.

    Args:
        opt: the optimizer that steps.
        every: how many gradients make a step.

    Raises:
        TypeError: if ``opt`` steps sparse gradients only; sums are dense.
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

    @answered("optim.Accumulate", "optim.Accumulate(opt, every=4)")
    def __init__(self, opt: Any, every: int) -> None:
        check_optimizer("Accumulate", "opt", opt)
        if type(every) is not int or every < 1:
            raise ValueError(
                f"Accumulate: every must be an int of at least 1, got {shown(every)}. "
                f"Write optim.Accumulate(opt, every=4)"
            )
        if any([isinstance(part, SparseAdam) for part in _parts_of(opt)]):
            raise TypeError(
                "Accumulate: sums of gradients are dense, and optim.SparseAdam takes sparse ones. "
                "Take the gradient of the mean of several losses, which stays sparse: "
                "func.grad(lambda model: (loss(model, one) + loss(model, two)) / 2)"
            )
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
        leaves, part = open_model("optim.Accumulate.init", model)
        rows = zip(leaves, part.trainable, strict=True)
        with torch.no_grad():
            zeros = [torch.zeros_like(p) if t and isinstance(p, Tensor) else None for p, t in rows]
        return Accumulated(inner, around(model, zeros), torch.zeros((), dtype=torch.int32))

    def step(
        self, model: M, grads: Any, state: Accumulated, donate: bool = False
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
        if in_place:
            check_takes_donation(what, self.opt)
        leaves, part = open_model(what, model)
        given = gather(what, model, leaves, part, grads)[1]
        with recorded(self._differentiable):
            if in_place:
                return self._added_in_place(what, model, given, state)
            return self._added(what, model, given, state)

    def _added(
        self, what: str, model: M, given: Sequence[Any], state: Accumulated
    ) -> tuple[M, Accumulated]:
        total, count = _sums(what, model, given, state), state.count + 1
        _add(what, model, total, given, range(len(total)))
        traced = dynamo.is_compiling() or functorch.transform_active()
        if not traced and int(count) < self.every:
            return model, Accumulated(state.inner, around(model, total), count)
        # By their number, which is larger if the state is of an optimizer with a larger ``every``.
        rows = zip(total, given, strict=True)
        if traced:
            mean = [g if g is None else (s / count.to(s.device)).to(g.dtype) for s, g in rows]
        else:
            mean = [g if g is None else (s / int(count)).to(g.dtype) for s, g in rows]
        zeros = [s if s is None else torch.zeros_like(s) for s in total]
        stepped = self.opt.step(model, around(model, mean), state.inner)
        if not traced:
            model, inner = stepped
            return model, Accumulated(inner, around(model, zeros), torch.zeros_like(count))
        done = count >= self.every
        before, (model, inner) = model, choose(what, done, stepped, (model, state.inner))
        kept = choose(what, done, around(before, zeros), around(before, total))
        return model, Accumulated(inner, kept, torch.where(done, torch.zeros_like(count), count))

    def _added_in_place(
        self, what: str, model: M, given: Sequence[Any], state: Accumulated
    ) -> tuple[M, Accumulated]:
        """As ``_added`` in eager code. Nothing is written before the state is marked as gone."""
        total = _sums(what, model, given, state)
        inner, count = state.inner, state.count + 1
        pairs = enumerate(zip(total, given, strict=True))
        here = {k: g for k, (s, g) in pairs if g is not None and _adds_in_place(s, g)}
        _add(what, model, total, given, [k for k in range(len(total)) if k not in here])
        read = [t for t in (*given, *core.leaves((model, inner))) if isinstance(t, Tensor)]
        make_private(list(here), [total], read)
        old = state.sum
        vars(state)["sum"] = None  # else the caller's variable would hold it during the step
        mark(None, state)
        mark(old)
        del old
        for k, grad in here.items():
            total[k].add_(grad)
        if int(count) < self.every:
            return model, Accumulated(inner, around(model, total), count)
        looks = [_look(s) for s in total]
        for k, grad in enumerate(given):
            if k in here:
                total[k].div_(int(count))
            else:
                total[k] = None if grad is None else (total[k] / int(count)).to(grad.dtype)
        mean = around(model, total)
        del total
        model, inner = self.opt.step(model, mean, inner, donate=True)
        del mean  # the optimizer may have kept it, so it is not set to zero
        zeros = around(model, [_zeros(look) for look in looks])
        return model, Accumulated(inner, zeros, torch.zeros_like(count))

    def __repr__(self) -> str:
        return f"Accumulate({self.opt!r}, every={self.every})"


def _parts_of(opt: Any) -> list[Any]:
    """An optimizer, and those inside of it."""
    held = list(getattr(opt, "__dict__", {}).values())
    for value in held:  # those that are appended, too
        held += value if isinstance(value, (tuple, list)) else ()
        held += value.values() if isinstance(value, dict) else ()
    inside = [value for value in held if hasattr(value, "step") and hasattr(value, "init")]
    return [opt, *[part for value in inside for part in _parts_of(value)]]


def _sums(what: str, model: Any, given: Sequence[Any], state: Accumulated) -> list[Any]:
    """The gradients so far in the order of the model's leaves; zeros where there was none.

    Raises:
        ValueError: if the state was made for another model.
    """
    leaves, part = open_model(what, model)
    sums = list(kept_for(part, state.sum, "sum", what))
    for k, grad in enumerate(given):
        if grad is None:
            continue
        if sums[k] is None:  # it is trained only now
            sums[k] = torch.zeros_like(leaves[k])
        elif sums[k].shape != grad.shape:
            raise ValueError(
                f"{what}: the state was made for another model: there "
                f"{type(model).__name__}.{part.paths[k]} has shape {tuple(sums[k].shape)}, here "
                f"its gradient has {tuple(grad.shape)}. Make one for this model: "
                f"state = opt.init(model)"
            )
    return sums


def _add(
    what: str, model: Any, sums: list[Any], given: Sequence[Any], members: Sequence[int]
) -> None:
    """Replaces some of the sums by those with the gradients added."""
    try:
        for k in members:
            if given[k] is not None:
                sums[k] = sums[k] + given[k]
    except RuntimeError as error:
        trees = {"the sum": sums, "the gradients": given}
        refuse_mixed(error, what, flatten_module(model)[1].paths, trees)
        raise


def _adds_in_place(total: Tensor, grad: Tensor) -> bool:
    """Whether ``total.add_(grad)`` is ``total + grad``, of tensors of torch's own classes."""
    plain = type(total) in PLAIN and type(grad) in PLAIN and total.layout is torch.strided
    return plain and (total.dtype, total.device) == (grad.dtype, grad.device)


def _look(leaf: Any) -> Any:
    """What ``_zeros`` makes a tensor of the same kind from, without the memory of this one."""
    if type(leaf) not in PLAIN or leaf.layout is not torch.strided:
        return leaf
    return torch.empty_like(leaf, device="meta"), leaf.device


def _zeros(look: Any) -> Any:
    if isinstance(look, tuple):
        like, device = look
        return torch.zeros_like(like, device=device)
    return look if look is None else torch.zeros_like(look)
