"""Instance normalisation, whose running statistics are effects where it keeps any."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat.shards import may_be_distributed
from parallax._compat.sums import uncut
from parallax.nn.channels import ChannelNorm
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most
from parallax.nn.moments import channels_watched
from parallax.nn.refusal import refuse, where

__all__ = ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


class _InstanceNorm(ChannelNorm):
    r"""What instance norms share.

    .. math:: y = (x - E[x]) (V[x] + \epsilon)^{-1/2} \gamma + \beta

    With ``track_running_stats``, the averages of the statistics over the batch are emitted in mode
    ``"train"`` (run it inside ``effects.collect``), and taken in mode ``"eval"``. Several
    emissions for one buffer become their mean, as those of batch norms do.

    Args:
        eps: is added to the variance; positive where the variance of the input is used.
        momentum: the weight of the new batch in the running statistics, between 0 and 1; ``None``
            keeps them as they are, as in ``torch.nn``.
        track_running_stats: whether running statistics are kept.

    Raises:
        EffectError: if it keeps running statistics, is in mode ``"train"``, and nobody collects.
        ValueError: if a size or a number is out of range, the input has another shape or number
            of channels, or there is one value per channel to take statistics of.

    Source: D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization", 2016.
    """

    # The dimension of the channels, counted from the last.
    axis: ClassVar[int]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The input, each channel of each example normalised."""
        try:
            dims, axis = input.dim(), self.axis
            # Without parameters torch's kernel accepts any number of channels.
            if dims not in self.shapes or input.shape[axis] != self.num_features:
                refuse(self, self.expected(), input)
            if dims == -axis:
                return self._normalised(input.unsqueeze(0)).squeeze(0)
            return self._normalised(input)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            self._check(input)
            raise

    def _normalised(self, input: Tensor) -> Tensor:
        """The normalised batch; in training emits new running statistics, if they are kept."""
        mean, var = uncut(self.running_mean), uncut(self.running_var)
        weight, bias, given = uncut(self.weight), uncut(self.bias), uncut(input, 0)
        tracked = mean is not None
        if tracked and self.mode != "train":
            return F.instance_norm(given, mean, var, weight, bias, False, 0.0, self.eps)
        share = 0.0 if self.momentum is None else self.momentum
        plain = in_plain_eager_code()
        # The kernel writes the running statistics of a part of a batch to a copy.
        written = tracked and may_be_distributed(input)
        if not written and (plain or one_derivative_at_most(input, weight, bias)):
            if tracked:
                mean, var = self.own_statistics(input)
            out = F.instance_norm(given, mean, var, weight, bias, True, share, self.eps)
            if plain:
                channels_watched(out)
        else:
            self._check(input)
            out, statistics = self.by_operators(input, (*range(2, input.dim()),))
            if tracked:
                mean, var = self.stepped(statistics, share)
        if tracked:
            self.emit(merge="mean", running_mean=mean, running_var=var)
        return out

    def _check(self, input: Any) -> None:
        """Raises if an input does not fit."""
        shape = input.shape if isinstance(input, Tensor) else torch.Size()
        if len(shape) not in self.shapes or shape[self.axis] != self.num_features:
            refuse(self, self.expected(), input)
        by_input = self.running_mean is None or self.mode == "train"
        if by_input and shape[self.axis + 1 :].numel() == 1:
            raise ValueError(
                f"{where(self)}: expected more than one value per channel to take statistics of, "
                f"got input of shape {tuple(shape)}"
            )


class InstanceNorm1d(_InstanceNorm, init=False):
    """Normalises each channel of each sequence.

    Shape:
        - input: ``(N, C, L)`` or ``(C, L)``

    Example:
        >>> nn.InstanceNorm1d(2)(torch.tensor([[1.0, 1.0], [-1.0, 1.0]])).round()
        tensor([[ 0.,  0.],
                [-1.,  1.]])
    """

    shapes: ClassVar[dict[int, str]] = {3: "(N, {}, L)", 2: "({}, L)"}
    axis: ClassVar[int] = -2


class InstanceNorm2d(_InstanceNorm, init=False):
    """Normalises each channel of each image.

    Shape:
        - input: ``(N, C, H, W)`` or ``(C, H, W)``

    Example:
        >>> nn.InstanceNorm2d(3)(torch.ones(5, 3, 4, 4)).shape
        torch.Size([5, 3, 4, 4])
    """

    shapes: ClassVar[dict[int, str]] = {4: "(N, {}, H, W)", 3: "({}, H, W)"}
    axis: ClassVar[int] = -3


class InstanceNorm3d(_InstanceNorm, init=False):
    """Normalises each channel of each volume.

    Shape:
        - input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``

    Example:
        >>> nn.InstanceNorm3d(2)(torch.ones(2, 3, 3, 3)).shape
        torch.Size([2, 3, 3, 3])
    """

    shapes: ClassVar[dict[int, str]] = {5: "(N, {}, D, H, W)", 4: "({}, D, H, W)"}
    axis: ClassVar[int] = -4
