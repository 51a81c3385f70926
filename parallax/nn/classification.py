"""Losses of scores against one class for each example."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat.gradients import WhereRecorded
from parallax._compat.shards import beside
from parallax._errors.arguments import shown
from parallax.core.fields import Buffer
from parallax.nn.arguments import between, integer
from parallax.nn.exactness import in_plain_eager_code, kernel_has_derivatives
from parallax.nn.loss import Loss, reduced, refuse_target, require_floating, weights_given
from parallax.nn.precision import widened
from parallax.nn.refusal import name_in, refuse, require_tensor

__all__ = ["CrossEntropyLoss", "MultiMarginLoss", "NLLLoss"]


class _OfClasses(Loss):
    """A loss of one class among C.

    Args:
        weight: a factor for each class, ``(C,)``; a buffer, so it is not trained.
    """

    weight: Buffer | None

    def __init__(self, weight: Tensor | None, *, reduction: str) -> None:
        super().__init__(reduction=reduction)
        self.weight = weights_given(type(self).__name__, "weight", weight)

    def _weight_beside(self, input: Tensor) -> Tensor | None:
        """The weights, which a loss that no plan has placed has in each process."""
        return None if self.weight is None else beside(self.weight, input)

    def _refuse(self, error: Exception, input: Any, target: Any, most: float = inf) -> None:
        """Raises if an argument does not fit, and returns otherwise.

        Args:
            error: what torch said.
            input: the scores.
            target: the classes.
            most: how many dimensions the scores may have.
        """
        require_tensor(self, input)
        require_tensor(self, target, "target")
        count = "C" if self.weight is None else str(len(self.weight))
        shape = input.shape
        axis = min(1, len(shape) - 1)
        if not 0 < len(shape) <= most or (count != "C" and shape[axis] != int(count)):
            rest = ", *" if most > 2 else ""
            refuse(self, f"(N, {count}{rest}) or ({count})", input)
        wanted = (*shape[:axis], *shape[axis + 1 :])
        refuse_target(self, input, target, wanted, isinstance(self, CrossEntropyLoss))
        name_in(error, self)


class CrossEntropyLoss(_OfClasses):
    r"""The cross-entropy of scores against classes, or shares of classes.

    :math:`-w_y \log \text{softmax}(x)_y` for a class y, or
    :math:`-\sum_c w_c y_c \log \text{softmax}(x)_c` for shares. The mean is that of the examples,
    weighted by :math:`w_y` for classes, as in torch.

    Args:
        ignore_index: a class that does not count.
        label_smoothing: the share of each target that is divided equally among all classes.

    Shape:
        - input: ``(N, C)``, ``(N, C, *)`` or ``(C)``: scores, of any scale
        - target: classes, ``(N)``, ``(N, *)`` or ``()``; or shares, in the shape of the input
        - output: ``()``, or as classes with ``reduction="none"``

    Source: C. Szegedy and others, "Rethinking the Inception Architecture", 2016, for the smoothing.

    Example:
        >>> nn.CrossEntropyLoss()(torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([1, 0]))
        tensor(0.4100)
    """

    ignore_index: int
    label_smoothing: float

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction=reduction)
        integer("CrossEntropyLoss", ignore_index=ignore_index)
        between("CrossEntropyLoss", 0, 1, label_smoothing=label_smoothing)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of the scores against the target."""
        try:
            return F.cross_entropy(
                input, target, self._weight_beside(input), ignore_index=self.ignore_index,
                reduction=self.reduction, label_smoothing=self.label_smoothing,
            )  # fmt: skip
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(error, input, target)
            raise


class NLLLoss(_OfClasses):
    r"""Minus the log-probability of the class: :math:`-w_y x_y`.

    With the output of ``LogSoftmax`` this is ``CrossEntropyLoss``. The mean is that of the
    examples, weighted by :math:`w_y`.

    Args:
        ignore_index: a class that does not count.

    Shape:
        - input: ``(N, C)``, ``(N, C, *)`` or ``(C)``: log-probabilities
        - target: classes, ``(N)``, ``(N, *)`` or ``()``
        - output: ``()``, or as the target with ``reduction="none"``

    Example:
        >>> nn.NLLLoss()(torch.tensor([[0.25, 0.75]]).log(), torch.tensor([1]))
        tensor(0.2877)
    """

    ignore_index: int

    def __init__(
        self, weight: Tensor | None = None, *, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(weight, reduction=reduction)
        integer("NLLLoss", ignore_index=ignore_index)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Minus the log-probability of the target's classes."""
        try:
            return F.nll_loss(
                input, target, self._weight_beside(input), ignore_index=self.ignore_index,
                reduction=self.reduction,
            )  # fmt: skip
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(error, input, target)
            raise


class MultiMarginLoss(_OfClasses):
    r"""What the score of the class lacks to exceed the others by a margin.

    .. math:: w_y \sum_{c \ne y} \max(0, m - x_y + x_c)^p / C

    Args:
        p: the exponent, 1 or 2.
        margin: m.

    Shape:
        - input: ``(N, C)`` or ``(C)``
        - target: classes, ``(N)`` or ``()``
        - output: ``()``, or as the target with ``reduction="none"``

    Example:
        >>> nn.MultiMarginLoss()(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([3]))
        tensor(0.3250)
    """

    p: int
    margin: float

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(weight, reduction=reduction)
        integer("MultiMarginLoss", p=p)
        if p not in (1, 2):
            raise ValueError(f"MultiMarginLoss(p=): must be 1 or 2, got {shown(p)}. Write p=1")
        between("MultiMarginLoss", -inf, margin=margin)
        self.p = p
        self.margin = margin

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the scores against the target."""
        try:
            if input.dim() > 2 or input.shape[:-1] != target.shape:
                raise RuntimeError("shapes")
            require_floating(self, input)
            scores = widened(input[None] if input.dim() == 0 else input)
            if not kernel_has_derivatives(input):
                losses = self._by_operators(scores, target)
            else:
                weight = None if self.weight is None else self.weight.to(scores.dtype)
                losses = F.multi_margin_loss(
                    scores, target, self.p, self.margin, weight, reduction="none"
                )
                if in_plain_eager_code() and losses.requires_grad:
                    _multi_margin_watched(self)(losses)
            return reduced(losses, self.reduction).to(input.dtype)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(error, input, target, 2)
            raise

    def _by_operators(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of each example, in operators whose derivatives are right at every order."""
        own = target.unsqueeze(-1)
        lacking = (self.margin - input.gather(-1, own) + input).clamp(min=0)
        others = torch.ones_like(input).scatter(-1, own, 0.0)
        losses = (lacking**self.p * others).sum(-1) / input.shape[-1]
        return losses if self.weight is None else losses * self.weight.to(losses.dtype)[target]


def _multi_margin_watched(layer: MultiMarginLoss) -> Callable[[Tensor], Tensor]:
    """What waits on the output of torch's kernel, whose gradient has no derivative."""

    def rule(node: Any) -> Any:
        target = node._saved_target
        return (node._saved_self,), lambda scores: layer._by_operators(scores, target)

    return WhereRecorded({"MultiMarginLossBackward0": rule}).watch
