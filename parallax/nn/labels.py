"""Losses of scores against labels, of which several may hold for one example."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import dynamo
from parallax._compat.gradients import WhereRecorded
from parallax.core.fields import Buffer
from parallax.nn.exactness import (
    can_be_read,
    has_no_derivative,
    in_plain_eager_code,
    kernel_has_derivatives,
)
from parallax.nn.loss import (
    Loss,
    Pointwise,
    reduced,
    refuse_shapes,
    refuse_target,
    require_floating,
    weights_given,
)
from parallax.nn.precision import widened
from parallax.nn.refusal import name_in, refuse, require_tensor, where

__all__ = ["BCELoss", "BCEWithLogitsLoss", "MultiLabelMarginLoss", "MultiLabelSoftMarginLoss"]


class BCELoss(Pointwise):
    r"""The cross-entropy of probabilities against labels: :math:`-y \log x - (1 - y) \log(1 - x)`.

    The logarithms are at least -100. ``BCEWithLogitsLoss`` takes scores, and is more exact.

    Args:
        weight: a factor for each number, in a shape that broadcasts with the input; a buffer.

    Shape:
        - input: ``(*)``, between 0 and 1
        - target: as the input: labels 0 and 1, or shares

    Example:
        >>> nn.BCELoss()(torch.tensor([0.25, 0.75]), torch.tensor([0.0, 1.0]))
        tensor(0.2877)
    """

    weight: Buffer | None

    def __init__(self, weight: Tensor | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.weight = weights_given("BCELoss", "weight", weight, None)

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        how = self.reduction
        if input.dtype is target.dtype is torch.float16:
            # What keeps the kernel's gradient finite at 0 and 1 is zero in this precision.
            return self._of(input.float(), target.float()).to(input.dtype)
        if has_no_derivative(target):
            return F.binary_cross_entropy(input, target, self.weight, reduction=how)
        # The kernel has no derivative by the target, in which the loss is linear.
        kept = target.detach()
        losses = F.binary_cross_entropy(input, kept, self.weight, reduction="none")
        inside = (input > 0) & (input < 1)
        safe = torch.where(inside, input, 0.5)
        ends = torch.where(input > 0, -100.0, 100.0).to(input.dtype)
        logs = torch.where(inside, torch.log1p(-safe).clamp(-100) - safe.log().clamp(-100), ends)
        slope = logs if self.weight is None else logs * self.weight
        return reduced(losses + (target - kept) * slope, how)


class BCEWithLogitsLoss(Pointwise):
    r"""The cross-entropy of scores against labels: ``BCELoss`` of the sigmoid of the input.

    .. math:: -w (p y \log \sigma(x) + (1 - y) \log(1 - \sigma(x)))

    Args:
        weight: a factor for each number, w, in a shape that broadcasts with the input; a buffer.
        pos_weight: a factor of the labels that hold, p, likewise.

    Shape:
        - input: ``(*)``
        - target: as the input: labels 0 and 1, or shares

    Example:
        >>> nn.BCEWithLogitsLoss()(torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 1.0]))
        tensor(0.2201)
    """

    weight: Buffer | None
    pos_weight: Buffer | None

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        self.weight = weights_given("BCEWithLogitsLoss", "weight", weight, None)
        self.pos_weight = weights_given("BCEWithLogitsLoss", "pos_weight", pos_weight, None)

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight
        )


class MultiLabelSoftMarginLoss(Loss):
    r"""The mean over labels of the cross-entropy of scores: ``BCEWithLogitsLoss`` of each example.

    Args:
        weight: a factor for each label, ``(C,)``; a buffer.

    Shape:
        - input: ``(N, C)`` or ``(C)``
        - target: as the input: labels 0 and 1, or shares
        - output: ``()``, or ``(N)`` with ``reduction="none"``

    Example:
        >>> nn.MultiLabelSoftMarginLoss()(torch.tensor([[-1.0, 2.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(0.2201)
    """

    weight: Buffer | None

    def __init__(self, weight: Tensor | None = None, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.weight = weights_given("MultiLabelSoftMarginLoss", "weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the scores against the labels."""
        try:
            if input.shape != target.shape:
                refuse_shapes(self, input, target)
            return F.multilabel_soft_margin_loss(
                input, target, self.weight, reduction=self.reduction
            )
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            require_tensor(self, input)
            require_tensor(self, target, "target")
            if input.dim() == 0:
                refuse(self, "(N, C) or (C)", input)
            if self.weight is not None and input.shape[-1:] != self.weight.shape:
                refuse(self, f"(N, {len(self.weight)}) or ({len(self.weight)})", input)
            name_in(error, self)
            raise


class MultiLabelMarginLoss(Loss, init=False):
    r"""What the scores of the labels that hold lack to exceed those of the others by one.

    .. math:: \sum_{j \in y} \sum_{i \notin y} \max(0, 1 - x_j + x_i) / C

    Shape:
        - input: ``(N, C)`` or ``(C)``
        - target: as the input: the numbers of the labels that hold; what follows a -1 is ignored
        - output: ``()``, or ``(N)`` with ``reduction="none"``

    Example:
        >>> loss = nn.MultiLabelMarginLoss()
        >>> loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the scores against the labels that hold."""
        try:
            if input.dim() > 2 or input.shape != target.shape or not input.is_floating_point():
                raise RuntimeError("shapes")
            scores = widened(input)
            if input.dim() == 0:
                scores, target = scores[None], target[None]
            self._check_labels(scores, target)
            # Inductor's gradient of the kernel is wrong (2.13).
            if dynamo.is_compiling() or not kernel_has_derivatives(input):
                losses = _labels_by_operators(scores, target)
            else:
                losses = F.multilabel_margin_loss(scores, target, reduction="none")
                if in_plain_eager_code():
                    _labels_watched(losses)
            return reduced(losses, self.reduction).to(input.dtype)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            require_tensor(self, input)
            require_tensor(self, target, "target")
            if input.dim() > 2:
                refuse(self, "(N, C) or (C)", input)
            require_floating(self, input)
            refuse_target(self, input, target, tuple(input.shape))
            name_in(error, self)
            raise

    def _check_labels(self, input: Tensor, target: Tensor) -> None:
        """Raises if there are no classes, or if labels that can be read are not among them."""
        count = input.shape[-1]
        if count == 0:
            refuse(self, "(N, C) or (C), with one class at least", input)
        if not can_be_read(target) or not target.numel():
            return
        least, most = [int(x) for x in target.aminmax()]
        if least < -1 or most >= count:
            raise ValueError(
                f"{where(self)}: expected labels from 0 to {count - 1}, and -1 after the last, got "
                f"{least if least < -1 else most}. Give -1 in its place"
            )


def _labels_by_operators(input: Tensor, target: Tensor) -> Tensor:
    """The loss of each example, in operators whose derivatives are right at every order."""
    first = torch.eq(target, -1).cumsum(-1) == 0
    places = torch.where(first, target, 0)
    holds = torch.zeros_like(input).scatter_add(-1, places, first.to(input.dtype)) > 0
    wanted = input.gather(-1, places)
    lacking = (1 - wanted.unsqueeze(-1) + input.unsqueeze(-2)).clamp(min=0)
    counted = first.unsqueeze(-1) & ~holds.unsqueeze(-2)
    return torch.where(counted, lacking, 0.0).sum((-1, -2)) / input.shape[-1]


def _rule(node: Any) -> Any:
    target = node._saved_target
    return (node._saved_self,), lambda scores: _labels_by_operators(scores, target)


_labels_watched = WhereRecorded({"MultilabelMarginLossBackward0": _rule}).watch
"""What waits on the output of torch's kernel, whose gradient has no derivative."""
