"""What batch and instance normalisation share: the running statistics of each channel."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import init

from parallax._compat.sums import cut_as, uncut
from parallax._errors.arguments import check_dtype, check_flags
from parallax.core.fields import Buffer, Parameter
from parallax.core.module import Module
from parallax.nn.arguments import between, positive
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.families import shown_as
from parallax.nn.moments import normalised

__all__ = ["ChannelNorm"]


class ChannelNorm(Module):
    r"""A layer that keeps running statistics of each channel.

    Args:
        num_features: the number of channels, C.
        affine: whether there is a ``weight``, :math:`\gamma`, and a ``bias``, :math:`\beta`.
        bias: whether there is a ``bias`` if ``affine``.
        dtype: of the parameters and the running statistics; by default torch's default dtype.

    Shape:
        - output: as the input
    """

    num_features: int
    eps: float
    momentum: float | None
    affine: bool
    track_running_stats: bool
    weight: Parameter | None
    bias: Parameter | None
    running_mean: Buffer | None
    running_var: Buffer | None
    num_batches_tracked: Buffer | None

    # Of the input, by its number of dimensions, with ``{}`` for the channels.
    shapes: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        bias: bool,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        positive(name, num_features=num_features)
        between(name, 0, eps=eps)
        check_flags(name, affine=affine, track_running_stats=track_running_stats, bias=bias)
        check_dtype(name, dtype)
        if momentum is not None:
            between(name, 0, 1, momentum=momentum)
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        shape, tracked = (num_features,), track_running_stats
        self.weight = Parameter(shape, init.ones_, dtype=dtype) if affine else None
        self.bias = Parameter(shape, init.zeros_, dtype=dtype) if affine and bias else None
        self.running_mean = Buffer(shape, init.zeros_, dtype=dtype) if tracked else None
        self.running_var = Buffer(shape, init.ones_, dtype=dtype) if tracked else None
        self.num_batches_tracked = Buffer((), init.zeros_, dtype=torch.int64) if tracked else None

    def own_statistics(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """The running statistics as tensors that torch's kernel may write to.

        Args:
            input: of shape ``(N, C, *)``.
        """
        # Of a tensor in other parts than the weight torch's kernel would write to a copy.
        mean: Any = uncut(self.running_mean)
        var: Any = uncut(self.running_var)
        if in_plain_eager_code():
            return mean.clone(), var.clone()
        # Mapped wherever the input is, which vmap asks of what is written to.
        others = (0, *range(2, input.dim()))
        nothing = input.detach()[:0].sum(others, dtype=mean.dtype)
        return nothing + mean, nothing + var

    def by_operators(
        self, input: Tensor, others: tuple[int, ...]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalises by the statistics of the input, with derivatives of every order.

        Args:
            input: of shape ``(N, C, *)``.
            others: the dimensions that are normalised together.

        Returns:
            The output; mean and unbiased variance of each channel, the means over a batch that is
            not among ``others``.
        """
        shape = (self.num_features, *[1] * (input.dim() - 2))
        weight, bias = [None if x is None else x.view(shape) for x in (self.weight, self.bias)]
        out, *moments = normalised(input, others, weight, bias, self.eps)
        count = prod([input.shape[dim] for dim in others])
        mean, var = [x.detach().mean(0).flatten() for x in moments]
        return out, (mean, var * (count / (count - 1)))

    def stepped(
        self, statistics: tuple[Tensor, Tensor], share: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """The running statistics, updated with new ones."""
        running: Any = (self.running_mean, self.running_var)
        pairs = zip(running, statistics, strict=True)
        one, two = [
            cut_as((1 - share) * old + share * new.to(old.dtype), old) for old, new in pairs
        ]
        return one, two

    def expected(self) -> str:
        """The shapes that the input may have."""
        return " or ".join(self.shapes.values()).format(*[self.num_features] * len(self.shapes))

    extra_repr = shown_as(torch.nn.BatchNorm2d)
