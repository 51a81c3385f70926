"""Distances and similarities of vectors."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.core.module import Module
from parallax.nn.arguments import between, integer
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, require_tensor, where
from parallax.nn.softmax import require_dim

__all__ = ["CosineSimilarity", "PairwiseDistance"]


class _OfTwo(Module):
    """What distances and similarities share.

    Args:
        eps: avoids a division by zero.

    Raises:
        TypeError: if an argument is of another type, or an input is not a tensor.
        ValueError: if an argument is out of range, or shapes do not broadcast.
    """

    eps: float

    def __init__(self, eps: float) -> None:
        super().__init__()
        between(type(self).__name__, 0, eps=eps)
        self.eps = eps

    extra_repr = shown_as(torch.nn.Module)

    def _refuse(self, error: Exception, x1: Any, x2: Any) -> None:
        """Raises if inputs are no tensors, or of shapes that do not fit, and returns otherwise."""
        require_tensor(self, x1, "x1")
        require_tensor(self, x2, "x2")
        one, two = tuple(x1.shape), tuple(x2.shape)
        pairs = zip(one[::-1], two[::-1], strict=False)
        if not all([a == b or 1 in (a, b) for a, b in pairs]):
            raise ValueError(
                f"{where(self)}: expected x1 and x2 of shapes that fit, got {one} and {two}. "
                f"Give tensors of one shape"
            ) from None
        name_in(error, self)


class CosineSimilarity(_OfTwo):
    r"""The cosine of the angle between vectors: :math:`x_1 \cdot x_2 / (\|x_1\| \|x_2\|)`.

    Args:
        dim: along which the vectors lie.
        eps: the least norm that is divided by.

    Shape:
        - x1, x2: ``(*, D, *)``, or shapes that broadcast
        - output: without the dimension D

    Raises:
        IndexError: if the inputs have no such dimension.

    Example:
        >>> nn.CosineSimilarity()(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([0.7071])
    """

    dim: int

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__(eps)
        integer("CosineSimilarity", dim=dim)
        self.dim = dim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The cosine similarity along the dimension."""
        try:
            return F.cosine_similarity(x1, x2, self.dim, self.eps)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            self._refuse(error, x1, x2)
            require_dim(self, max(x1, x2, key=lambda x: x.dim()), self.dim)
            raise


class PairwiseDistance(_OfTwo):
    r"""The norm of the difference of vectors: :math:`\|x_1 - x_2 + \epsilon\|_p`.

    Args:
        p: of which norm.
        eps: is added to each difference, so that the norm has a derivative where they are equal.
        keepdim: whether the last dimension is kept, with size 1.

    Shape:
        - x1, x2: ``(N, D)`` or ``(D)``, or shapes that broadcast
        - output: ``(N)`` or ``()``; with ``keepdim`` ``(N, 1)`` or ``(1)``

    Example:
        >>> nn.PairwiseDistance()(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])).round()
        tensor([5.])
    """

    norm: float
    keepdim: bool

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        super().__init__(eps)
        between("PairwiseDistance", -inf, p=p)
        check_flags("PairwiseDistance", keepdim=keepdim)
        self.norm = p
        self.keepdim = keepdim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The norm of the difference along the last dimension."""
        try:
            return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            self._refuse(error, x1, x2)
            raise
