"""Leaves out the steps whose gradients are not finite."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import answered
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_optimizer
from parallax.optim.checks import check_state, gather, open_model
from parallax.optim.choose import choose, without_nonfinite
from parallax.optim.derivatives import is_differentiable, recorded
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits

__all__ = ["SkipNonfinite", "Skipped"]

M = TypeVar("M")


class Skipped(Module):
    """The state of ``SkipNonfinite``.

    Attributes:
        inner: the optimizer's own state.
        total: how many steps were left out, a tensor of no dimension.
        in_a_row: how many of them since the last step that was made.

    Example:
        >>> from parallax import nn, optim
        >>> opt = optim.SkipNonfinite(optim.Adam())
        >>> state: optim.Skipped = opt.init(nn.Linear(2, 1).initialize(0))
        >>> int(state.total), int(state.in_a_row)
        (0, 0)
    """

    inner: Module
    total: Buffer
    in_a_row: Buffer


@hint_at_habits
class SkipNonfinite:
    """An optimizer that leaves out a step if any gradient is infinite or nan.

    The model and the optimizer's state stay as they were. The state counts such steps: look at
    ``state.in_a_row`` from time to time, since a run that only skips learns nothing. Put
    ``chain`` inside, so that its parts see finite gradients only.

    Args:
        opt: the optimizer that steps.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.SkipNonfinite(optim.SGD(lr=1.0)), Point(torch.zeros(1))
        >>> state = opt.init(point)
        >>> for grad in (1.0, float("nan"), 1.0):
        ...     point, state = opt.step(point, Point(torch.tensor([grad])), state)
        >>> point.at, state.total, state.in_a_row
        (tensor([-2.]), tensor(1, dtype=torch.int32), tensor(0, dtype=torch.int32))
    """

    _leaves_out_steps = True  # which parts of a chain must not stand after

    @answered("optim.SkipNonfinite", "optim.SkipNonfinite(opt)")
    def __init__(self, opt: Any) -> None:
        check_optimizer("SkipNonfinite", "opt", opt)
        self.opt = opt

    @property
    def _differentiable(self) -> bool:
        return is_differentiable(self.opt)

    def init(self, model: Any) -> Skipped:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state.
        """
        zero = torch.zeros((), dtype=torch.int32)
        return Skipped(self.opt.init(model), zero, torch.zeros_like(zero))

    def step(self, model: M, grads: Any, state: Skipped, donate: bool = False) -> tuple[M, Skipped]:
        """One step, or none.

        Args:
            model: a module.
            grads: gradients; those of frozen leaves are not looked at.
            state: what ``init`` or the last ``step`` returned.
            donate: reuse the memory of the model and the state if a step is made.

        Returns:
            The model and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        what = "optim.SkipNonfinite.step"
        check_donation(what, donate, self._differentiable)
        check_state(what, state, Skipped)
        leaves, part = open_model(what, model)
        chosen, given = gather(what, model, leaves, part, grads)
        finite = _all_finite([given[k] for k in chosen])
        if not (dynamo.is_compiling() or functorch.transform_active()):
            if not bool(shards.whole(finite)):
                return model, Skipped(state.inner, state.total + 1, state.in_a_row + 1)
            model, inner = self.opt.step(model, grads, state.inner, donate=donate)
            return model, Skipped(inner, state.total, torch.zeros_like(state.in_a_row))
        with recorded(self._differentiable):
            if self._differentiable:
                grads = without_nonfinite(finite, grads)
            stepped = self.opt.step(model, grads, state.inner, donate=donate)
            model, inner = choose(what, finite, stepped, (model, state.inner))
        bad = (~finite).to(state.total.device, torch.int32)
        return model, Skipped(inner, state.total + bad, (state.in_a_row + 1) * bad)

    def __repr__(self) -> str:
        return f"SkipNonfinite({self.opt!r})"


def _all_finite(grads: list[Tensor]) -> Tensor:
    """Whether all entries of all gradients are finite, a boolean tensor."""
    values = [g.coalesce().values() if g.layout is torch.sparse_coo else g for g in grads]
    parts = [value.detach().isfinite().all() for value in values]
    if not parts:
        return torch.tensor(True)
    return shards.all_true(parts)
