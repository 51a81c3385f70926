"""Losses that ask for a margin, of scores and of distances."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags, check_function
from parallax.core.module import Module
from parallax.func.loss_formulas import cosine_embedding
from parallax.nn.arguments import between
from parallax.nn.distances import PairwiseDistance
from parallax.nn.exactness import derived_forward
from parallax.nn.loss import Loss, Pointwise, reduced
from parallax.nn.refusal import name_in, require_tensor, where

__all__ = ["CosineEmbeddingLoss", "HingeEmbeddingLoss", "MarginRankingLoss", "SoftMarginLoss",
           "TripletMarginLoss", "TripletMarginWithDistanceLoss"]  # fmt: skip


class SoftMarginLoss(Pointwise, init=False):
    r"""The logistic loss of scores against signs: :math:`\log(1 + e^{-y x})`.

    Shape:
        - target: 1 and -1, in the shape of the input

    Example:
        >>> nn.SoftMarginLoss()(torch.tensor([0.0, 2.0]), torch.tensor([1.0, -1.0]))
        tensor(1.4100)
    """

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        # Torch's kernel overflows for wrong scores, and has no derivative by the target.
        return reduced(-F.logsigmoid(input * target), self.reduction)


class HingeEmbeddingLoss(Pointwise):
    r"""Distances of what is similar, and what distances of the rest lack to a margin.

    :math:`x` if :math:`y = 1`, and :math:`\max(0, m - x)` if :math:`y = -1`.

    Args:
        margin: how far apart the rest shall be.

    Shape:
        - target: 1 and -1, in the shape of the input

    Example:
        >>> nn.HingeEmbeddingLoss()(torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]))
        tensor(0.5000)
    """

    margin: float

    def __init__(self, margin: float = 1.0, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        between("HingeEmbeddingLoss", -inf, margin=margin)
        self.margin = margin

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.hinge_embedding_loss(input, target, self.margin, reduction=self.reduction)


class _Compared(Loss):
    """A loss of several inputs, which are tensors whose shapes broadcast.

    Args:
        margin: what the difference shall be at least.
    """

    margin: float

    def __init__(self, margin: float, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        between(type(self).__name__, -inf, margin=margin)
        self.margin = margin

    def _refuse(self, error: Exception, **inputs: Any) -> None:
        """Raises if inputs are no tensors, or of shapes that do not fit, and returns otherwise."""
        for name, value in inputs.items():
            require_tensor(self, value, name)
        shapes = [tuple(value.shape) for value in inputs.values()]
        try:
            torch.broadcast_shapes(*shapes)
        except RuntimeError:
            names = ", ".join(inputs)
            raise ValueError(
                f"{where(self)}: expected {names} of shapes that fit, got "
                f"{', '.join(map(str, shapes))}. Give tensors of one shape"
            ) from None
        name_in(error, self)

    def _require_rank(self, **inputs: Tensor) -> None:
        """Raises unless all have as many dimensions, as torch asks."""
        dims = {value.dim() for value in inputs.values()}
        if len(dims) > 1:
            shapes = ", ".join([str(tuple(value.shape)) for value in inputs.values()])
            raise ValueError(
                f"{where(self)}: expected {', '.join(inputs)} with as many dimensions, got shapes "
                f"{shapes}. Give tensors of one shape"
            )


class MarginRankingLoss(_Compared):
    r"""Which of two scores shall be larger, by a margin: :math:`\max(0, m - y (x_1 - x_2))`.

    Shape:
        - input1, input2: ``(*)``
        - target: 1 where the first shall be larger, -1 where the second; as the inputs
        - output: ``()``, or as the inputs with ``reduction="none"``

    Example:
        >>> loss = nn.MarginRankingLoss(0.5)
        >>> loss(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([1.0]))
        tensor(1.5000)
    """

    def __init__(self, margin: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(margin, reduction=reduction)

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        """The loss of two scores against the signs of their wanted differences."""
        try:
            self._require_rank(input1=input1, input2=input2, target=target)
            return F.margin_ranking_loss(
                input1, input2, target, self.margin, reduction=self.reduction
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            self._refuse(error, input1=input1, input2=input2, target=target)
            raise


class CosineEmbeddingLoss(_Compared):
    r"""The cosine similarity of pairs, which shall be one, or not exceed a margin.

    :math:`1 - \cos(x_1, x_2)` if :math:`y = 1`, and :math:`\max(0, \cos(x_1, x_2) - m)` if
    :math:`y = -1`.

    Args:
        margin: what the similarity of the rest may be.

    Shape:
        - input1, input2: ``(N, D)`` or ``(D)``
        - target: 1 for what is similar, -1 for the rest; ``(N)`` or ``()``
        - output: ``()``, or as the target with ``reduction="none"``

    Example:
        >>> one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> nn.CosineEmbeddingLoss()(one, two, torch.tensor([1.0]))
        tensor(0.2929)
    """

    def __init__(self, margin: float = 0.0, *, reduction: str = "mean") -> None:
        super().__init__(margin, reduction=reduction)

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        """The loss of two inputs against whether they are similar."""
        try:
            if input1.dim() not in (1, 2) or target.shape != input1.shape[:-1]:
                raise RuntimeError("shapes")
            if derived_forward():  # of which torch's kernel has third derivatives that are wrong
                losses = cosine_embedding(input1, input2, target, self.margin)
                return reduced(losses, self.reduction)
            return F.cosine_embedding_loss(
                input1, input2, target, self.margin, reduction=self.reduction
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            named = {"input1": input1, "input2": input2, "target": target}
            for name, value in named.items():
                require_tensor(self, value, name)
            fits = input1.dim() in (1, 2) and target.shape == input1.shape[:-1]
            if not fits or input2.shape != input1.shape:
                shapes = ", ".join([str(tuple(value.shape)) for value in named.values()])
                raise ValueError(
                    f"{where(self)}: expected input1 and input2 of shape (N, D) and target (N,), "
                    f"or (D,) and (), got {shapes}. "
                    f"Give a target such as torch.ones(input1.shape[0])"
                ) from None
            name_in(error, self)
            raise


class _Triplet(_Compared):
    """A loss of triplets: an anchor shall be nearer to what is like it than to the rest.

    Args:
        margin: by how much; positive.
        swap: whether the distance of positive and negative counts for that of anchor and negative
            where it is smaller.

    Shape:
        - anchor, positive, negative: ``(N, D)`` or ``(D)``
        - output: ``()``, or ``(N)`` with ``reduction="none"``

    Source: V. Balntas and others, "Learning Shallow Convolutional Feature Descriptors with Triplet
    Losses", BMVC 2016.
    """

    swap: bool

    def __init__(self, margin: float, swap: bool, *, reduction: str) -> None:
        name = type(self).__name__
        super().__init__(margin, reduction=reduction)
        if margin <= 0:
            raise ValueError(f"{name}(margin=): must be positive, got {margin}. Write margin=1.0")
        check_flags(name, swap=swap)
        self.swap = swap


class TripletMarginLoss(_Triplet):
    r"""What distances of an anchor lack to a margin: :math:`\max(0, d(a, p) - d(a, n) + m)`.

    :math:`d` is the norm of the difference, as in ``PairwiseDistance``.

    Args:
        p: of which norm.
        eps: is added to each difference.

    Example:
        >>> anchor, near, far = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nn.TripletMarginLoss(margin=2.5)(anchor, near, far)
        tensor(0.5000)
    """

    p: float
    eps: float

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        *,
        reduction: str = "mean",
    ) -> None:
        super().__init__(margin, swap, reduction=reduction)
        between("TripletMarginLoss", 0, p=p, eps=eps)
        self.p = p
        self.eps = eps

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of anchors, what is like them, and what is not."""
        try:
            self._require_rank(anchor=anchor, positive=positive, negative=negative)
            return F.triplet_margin_loss(
                anchor, positive, negative, self.margin, self.p, self.eps, self.swap,
                reduction=self.reduction,
            )  # fmt: skip
        except (AttributeError, RuntimeError, TypeError) as error:
            self._refuse(error, anchor=anchor, positive=positive, negative=negative)
            raise


class TripletMarginWithDistanceLoss(_Triplet):
    r"""``TripletMarginLoss`` with any distance: :math:`\max(0, d(a, p) - d(a, n) + m)`.

    Args:
        distance_function: takes two tensors to their distances, a function or a module, whose
            parameters are then trained; by default ``PairwiseDistance()``.

    Example:
        >>> squared = lambda a, b: (a - b).square().sum(-1)
        >>> loss = nn.TripletMarginWithDistanceLoss(distance_function=squared)
        >>> loss(*torch.tensor([[0.0], [1.0], [1.0]]))
        tensor(1.)
    """

    distance_function: Module | Callable[..., Any]

    def __init__(
        self,
        *,
        distance_function: Callable[[Tensor, Tensor], Tensor] | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(margin, swap, reduction=reduction)
        if distance_function is None:
            distance_function = PairwiseDistance()
        name = "TripletMarginWithDistanceLoss"
        check_function(name, distance_function, "nn.CosineSimilarity()", "distance_function")
        if isinstance(distance_function, torch.nn.Module):
            raise TypeError(
                f"{name}(distance_function=): got a torch.nn.Module. "
                f"Lift it first: bridge.lift(distance_function)"
            )
        self.distance_function = distance_function

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss of anchors, what is like them, and what is not."""
        try:
            self._require_rank(anchor=anchor, positive=positive, negative=negative)
        except AttributeError as error:
            self._refuse(error, anchor=anchor, positive=positive, negative=negative)
            raise
        distance: Any = self.distance_function
        far = distance(anchor, negative)
        if self.swap:
            far = torch.minimum(far, distance(positive, negative))
        near = distance(anchor, positive)
        return reduced(torch.clamp_min(self.margin + near - far, 0), self.reduction)
