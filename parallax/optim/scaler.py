"""Mixed precision: a loss scaler whose scale is a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import shown
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_at_least, check_fields, check_optimizer
from parallax.optim.checks import check_state
from parallax.optim.choose import choose, without_nonfinite
from parallax.optim.derivatives import is_differentiable, recorded
from parallax.tree import core
from parallax.tree.arguments import check_tree

__all__ = ["LossScaler", "Scale"]

T = TypeVar("T")
S = TypeVar("S")


class Scale(Module):
    """The state of a loss scaler.

    Attributes:
        scale: what losses are multiplied with, a tensor of no dimension.
        growth_tracker: how many steps without an overflow since the scale last changed.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> scaler = optim.LossScaler(init_scale=1024.0)
        >>> scale = scaler.init()
        >>> scaler.update(scale, finite=torch.tensor(False)).scale  # halved after an overflow
        tensor(512.)
    """

    scale: Buffer
    growth_tracker: Buffer

    def extra_repr(self) -> str:
        """The scale, and how many steps without an overflow since it last changed."""
        fields = {"scale": self.scale, "growth_tracker": self.growth_tracker}
        return ", ".join([f"{name}={_shown(value)}" for name, value in fields.items()])


def _shown(value: Any) -> str:
    """A value as a number, where torch can read one."""
    wrapped = isinstance(value, Tensor) and functorch.is_wrapped(value)
    return repr(value) if wrapped else f"{value}"


@dataclass(frozen=True)
class LossScaler:
    """Multiplies losses so that small gradients survive half precision.

    The pure form of ``torch.amp.GradScaler``: a step with gradients that are not finite is
    skipped and the scale falls; after ``growth_interval`` good steps it grows.

    Args:
        init_scale: the scale to begin with.
        growth_factor: what the scale is multiplied by when it grows.
        backoff_factor: what it is multiplied by after a step that was skipped.
        growth_interval: after how many good steps it grows.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> point, opt, scaler = Point(torch.ones(1)), optim.SGD(lr=0.5), optim.LossScaler(8.0)
        >>> state, scale = opt.init(point), scaler.init()
        >>> grads = func.grad(lambda point: scaler.scale(point.at.sum(), scale))(point)
        >>> point, state, scale = scaler.step(opt, point, grads, state, scale)
        >>> point.at
        tensor([0.5000])
        >>> unscaled, finite = scaler.unscale(grads, scale)  # the parts of a step
        >>> unscaled.at, finite, scaler.update(scale, finite).growth_tracker
        (tensor([1.]), tensor(True), tensor(2, dtype=torch.int32))
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        check_fields("LossScaler", self)
        check_at_least("LossScaler", "init_scale", self.init_scale, 0, strictly=True)
        check_at_least("LossScaler", "growth_interval", self.growth_interval, 1)
        if self.growth_factor <= 1.0 or not 0.0 < self.backoff_factor < 1.0:
            raise ValueError(
                f"LossScaler: growth_factor must be above 1 and backoff_factor between 0 and 1, "
                f"got {self.growth_factor} and {self.backoff_factor}"
            )

    def init(self) -> Scale:
        """The scale to begin with."""
        return Scale(torch.tensor(self.init_scale), torch.zeros((), dtype=torch.int32))

    def scale(self, loss: Tensor, scale: Scale) -> Tensor:
        """The scaled loss, which is to be differentiated.

        Args:
            loss: a tensor.
            scale: the state.

        Returns:
            ``loss`` times the scale.
        """
        check_state("optim.LossScaler.scale", scale, Scale, "scaler.init()")
        _check_tensor("scale", "loss", loss, "loss.sum()")
        return loss * scale.scale.to(loss.device)

    def unscale(self, grads: T, scale: Scale) -> tuple[T, Tensor]:
        """The gradients of the unscaled loss.

        Args:
            grads: gradients of the scaled loss; holes stay.
            scale: the state.

        Returns:
            The gradients divided by the scale, and whether all are finite, a boolean tensor.
        """
        check_state("optim.LossScaler.unscale", scale, Scale, "scaler.init()")
        check_tree("optim.LossScaler.unscale", grads, "grads")
        inverse = scale.scale.double().reciprocal().float()
        made = core.map(lambda g: (g * inverse.to(g.device)).to(g.dtype), grads)
        parts = [leaf.isfinite().all() for leaf in core.leaves(made)]
        if not parts:
            return made, torch.tensor(True)
        return made, shards.all_true(parts)

    def update(self, scale: Scale, finite: Tensor) -> Scale:
        """The scale after a step.

        Args:
            scale: the state.
            finite: whether the step's gradients were finite.

        Returns:
            The next state.
        """
        check_state("optim.LossScaler.update", scale, Scale, "scaler.init()")
        _check_tensor("update", "finite", finite, "torch.tensor(True)")
        finite = finite.to(scale.scale.device)
        good = scale.growth_tracker + 1
        grows = good == self.growth_interval
        grown = torch.where(grows, scale.scale * self.growth_factor, scale.scale)
        size = torch.where(finite, grown, scale.scale * self.backoff_factor)
        tracker = torch.where(finite & ~grows, good, torch.zeros_like(good))
        return Scale(size, tracker)

    def step(self, opt: Any, model: T, grads: Any, state: S, scale: Scale) -> tuple[T, S, Scale]:
        """One step of an optimizer if the gradients are finite, none if they are not.

        Args:
            opt: an optimizer.
            model: a module.
            grads: gradients of the scaled loss.
            state: the optimizer's state.
            scale: the scaler's state.

        Returns:
            The model, the optimizer's state and the scaler's state.
        """
        check_optimizer("optim.LossScaler.step", "opt", opt)
        check_state("optim.LossScaler.step", scale, Scale, "scaler.init()")
        unscaled, finite = self.unscale(grads, scale)
        after = self.update(scale, finite)
        if not (dynamo.is_compiling() or functorch.transform_active()):
            if not bool(shards.whole(finite)):
                return model, state, after
            return *opt.step(model, unscaled, state), after
        with recorded(is_differentiable(opt)):
            if is_differentiable(opt):
                unscaled = without_nonfinite(finite, unscaled)
            stepped = opt.step(model, unscaled, state)
            return *choose("optim.LossScaler.step", finite, stepped, (model, state)), after


def _check_tensor(verb: str, name: str, value: Any, example: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"optim.LossScaler.{verb}: {name} must be a tensor, got {shown(value)}. "
            f"Give one: {example}"
        )
