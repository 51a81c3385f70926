"""Batch normalisation, whose running statistics are effects."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat.sums import cut_as, uncut
from parallax.nn.channels import ChannelNorm
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most
from parallax.nn.moments import channels_watched
from parallax.nn.refusal import refuse, where

__all__ = ["BatchNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"]


class BatchNorm(ChannelNorm):
    r"""What batch norms share.

    .. math:: y = (x - E[x]) (V[x] + \epsilon)^{-1/2} \gamma + \beta

    In mode ``"train"`` with the mean and variance of the batch; new running statistics are
    emitted, so run it inside ``effects.collect``. In mode ``"eval"`` with the running statistics.

    Several emissions for one buffer (of a layer used twice by ``split``, or mapped over batches by
    ``vmap``) count as one step: the running statistics become the mean of what each emission alone
    would have given. In an ensemble each member has buffers of its own, which are not merged.

    Args:
        eps: is added to the variance; positive when training.
        momentum: the weight of the new batch in the running statistics, between 0 and 1; ``None``
            for the average of all batches.
        track_running_stats: whether running statistics are kept; otherwise those of the batch
            are used in both modes, and nothing is emitted.

    Raises:
        EffectError: if nobody collects, in mode ``"train"``.
        ValueError: if a size or a number is out of range, the input has another shape, or there
            is one value per channel to take statistics of.

    Source: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, bias, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The input, normalised by the batch's statistics in training, else by the running ones."""
        by_batch = self.running_mean is None
        if not by_batch and self.mode == "train":
            return self._train(input)
        weight, bias = uncut(self.weight), uncut(self.bias)
        try:
            if input.dim() not in self.shapes:
                refuse(self, self.expected(), input)
            plain = in_plain_eager_code()
            if by_batch and not plain and not one_derivative_at_most(input, weight, bias):
                return self._by_operators(input)[0]
            mean, var = uncut(self.running_mean), uncut(self.running_var)
            given = uncut(input, 0)
            out = F.batch_norm(given, mean, var, weight, bias, by_batch, 0.0, self.eps)
            return channels_watched(out) if plain and by_batch else out
        except (AttributeError, RuntimeError, TypeError, ValueError):
            self._check(input, by_batch)
            raise

    def _train(self, input: Tensor) -> Tensor:
        """The normalised batch; emits the new running statistics."""
        before: Any = self.num_batches_tracked
        try:
            if input.dim() not in self.shapes:
                refuse(self, self.expected(), input)
            count = before + 1
            if in_plain_eager_code():
                share = self.momentum if self.momentum is not None else 1.0 / float(count)
                out, mean, var = self._by_kernel(input, share)
                channels_watched(out)
            else:
                out, mean, var = self._transformed(input, count)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            self._check(input, True)
            raise
        self.emit(merge="mean", running_mean=mean, running_var=var)
        self.emit(merge="last", num_batches_tracked=count)
        return out

    def _transformed(self, input: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output and the new statistics in a graph or a transform."""
        # The factor of the kernel is a number, and a tensor cannot be read here.
        share: Any = 1.0 / count if self.momentum is None else self.momentum
        if not one_derivative_at_most(input, self.weight, self.bias):
            out, statistics = self._by_operators(input)
        elif self.momentum is None:
            out, mean, var = self._by_kernel(input, 1.0)
            statistics = mean, var
        else:
            return self._by_kernel(input, share)
        return out, *self.stepped(statistics, share)

    def _by_kernel(self, input: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = self.own_statistics(input)
        weight, bias = uncut(self.weight), uncut(self.bias)
        out = F.batch_norm(uncut(input, 0), mean, var, weight, bias, True, share, self.eps)
        running: Any = (self.running_mean, self.running_var)
        return out, cut_as(mean, running[0]), cut_as(var, running[1])

    def _by_operators(self, input: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self._check(input, True)
        return self.by_operators(input, (0, *range(2, input.dim())))

    def _check(self, input: Any, by_batch: bool) -> None:
        """Raises if an input does not fit; ``by_batch``: its own statistics are taken."""
        shape = input.shape if isinstance(input, Tensor) else torch.Size()
        if len(shape) not in self.shapes or shape[1] != self.num_features:
            refuse(self, self.expected(), input)
        if by_batch and shape.numel() == self.num_features:
            raise ValueError(
                f"{where(self)}: expected more than one value per channel when training, "
                f"got input of shape {tuple(shape)}"
            )


class BatchNorm1d(BatchNorm, init=False):
    """Normalises each channel over a batch of vectors or of sequences.

    Shape:
        - input: ``(N, C)`` or ``(N, C, L)``

    Example:
        >>> norm = nn.BatchNorm1d(2).initialize(0).eval()
        >>> norm(torch.ones(5, 2, 7)).shape
        torch.Size([5, 2, 7])
    """

    shapes: ClassVar[dict[int, str]] = {2: "(N, {})", 3: "(N, {}, L)"}


class BatchNorm2d(BatchNorm, init=False):
    """Normalises each channel over a batch of images.

    Shape:
        - input: ``(N, C, H, W)``

    Example:
        >>> from parallax import effects
        >>> norm = nn.BatchNorm2d(2).initialize(0).train()
        >>> y, norm = effects.collect(lambda norm, x: norm(x))(norm, torch.ones(5, 2, 3, 3))
        >>> norm.running_mean
        tensor([0.1000, 0.1000])
    """

    shapes: ClassVar[dict[int, str]] = {4: "(N, {}, H, W)"}


class BatchNorm3d(BatchNorm, init=False):
    """Normalises each channel over a batch of volumes.

    Shape:
        - input: ``(N, C, D, H, W)``

    Example:
        >>> norm = nn.BatchNorm3d(2).initialize(0).eval()
        >>> norm(torch.ones(5, 2, 3, 3, 3)).shape
        torch.Size([5, 2, 3, 3, 3])
    """

    shapes: ClassVar[dict[int, str]] = {5: "(N, {}, D, H, W)"}
