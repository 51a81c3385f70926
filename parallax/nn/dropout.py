"""Dropout: the mask depends on the module's key alone."""

from __future__ import annotations

from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat.shards import beside
from parallax.core.module import Module
from parallax.nn.arguments import between
from parallax.nn.families import shown_as
from parallax.nn.refusal import refuse, require_tensor

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout",
           "dropped"]  # fmt: skip

# Minus the lower limit of SELU: its scale times its alpha.
_SATURATED = 1.7580993408473766


def dropped(input: Tensor, p: float, key: random.Key, noise_shape: Any = None) -> Tensor:
    """A tensor after dropout.

    Args:
        input: of any floating or complex dtype.
        p: the probability of a zero.
        key: used up.
        noise_shape: of the mask, which broadcasts; by default the input's.
    """
    dtype = input.dtype.to_real() if input.is_complex() else input.dtype
    shape = input.shape if noise_shape is None else noise_shape
    mask = random.dropout_mask(key, shape, p, dtype=dtype, device=input.device)
    return input * beside(mask, input)


def _rank(input: Any) -> int:
    """The number of dimensions of a tensor; -1 for anything else."""
    return input.dim() if isinstance(input, Tensor) else -1


class _Dropout(Module):
    """What all dropout shares.

    Shape:
        - input: any
        - output: as the input; in mode ``"eval"`` the input itself

    Raises:
        KeyReusedError: if the same key was drawn from before.
        RuntimeError: if it trains, and no rng was handed out.
        ValueError: if ``p`` is no probability.
    """

    p: float
    inplace: ClassVar[bool] = False  # which torch's ``extra_repr`` reads

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        between(type(self).__name__, 0, 1, p=p)
        self.p = p

    extra_repr = shown_as(torch.nn.Dropout)


class Dropout(_Dropout, init=False):
    """Sets each number to zero with probability ``p``, and divides the others by ``1 - p``.

    In mode ``"train"`` only, with a mask drawn from ``self.rng``: give the tree a new key in each
    step, ``module.train(key)``. Under ``vmap`` all examples have the same mask unless the keys are
    mapped, too. Nothing is drawn if ``p`` is 0.

    Args:
        p: the probability of a zero.

    Source: N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", JMLR 2014.

    Example:
        >>> from parallax import random
        >>> nn.Dropout(0.5).train(random.key(0))(torch.ones(6))
        tensor([0., 2., 2., 0., 0., 0.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with numbers set to zero and the others scaled up."""
        if type(input) is not Tensor:
            require_tensor(self, input)
        if self.mode != "train" or self.p == 0:
            return input
        return dropped(input, self.p, random.as_key(self.rng))


class _ChannelDropout(_Dropout, init=False):
    """What dropout of whole channels shares.

    Args:
        p: the probability that a channel becomes zero.
    """

    # The shape of the input, by its number of dimensions; the channels stand before the others.
    shapes: ClassVar[dict[int, str]]
    spatial: ClassVar[int]

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with whole channels set to zero and the others scaled up."""
        if _rank(input) not in self.shapes:
            refuse(self, " or ".join(self.shapes.values()), input)
        if self.mode != "train" or self.p == 0:
            return input
        noise = (*input.shape[: -self.spatial], *(1,) * self.spatial)
        return dropped(input, self.p, random.as_key(self.rng), noise)


class Dropout1d(_ChannelDropout, init=False):
    """Dropout of whole channels of sequences; see ``Dropout``.

    Shape:
        - input: ``(N, C, L)`` or ``(C, L)``

    Example:
        >>> from parallax import random
        >>> nn.Dropout1d().train(random.key(0))(torch.ones(3, 2))
        tensor([[0., 0.],
                [2., 2.],
                [2., 2.]])
    """

    shapes: ClassVar[dict[int, str]] = {3: "(N, C, L)", 2: "(C, L)"}
    spatial: ClassVar[int] = 1


class Dropout2d(_ChannelDropout, init=False):
    """Dropout of whole channels of images; see ``Dropout``.

    ``torch.nn`` takes three dimensions, too, for ``(N, C, L)``, and warns that this will change.
    Here ``Dropout1d`` does that.

    Shape:
        - input: ``(N, C, H, W)``

    Source: J. Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015.

    Example:
        >>> from parallax import random
        >>> nn.Dropout2d(0.25).train(random.key(0))(torch.ones(2, 3, 5, 4)).shape
        torch.Size([2, 3, 5, 4])
    """

    shapes: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}
    spatial: ClassVar[int] = 2


class Dropout3d(_ChannelDropout, init=False):
    """Dropout of whole channels of volumes; see ``Dropout``.

    Shape:
        - input: ``(N, C, D, H, W)`` or ``(C, D, H, W)``

    Example:
        >>> from parallax import random
        >>> nn.Dropout3d(0.25).train(random.key(0))(torch.ones(3, 2, 5, 4)).shape
        torch.Size([3, 2, 5, 4])
    """

    shapes: ClassVar[dict[int, str]] = {5: "(N, C, D, H, W)", 4: "(C, D, H, W)"}
    spatial: ClassVar[int] = 3


class _AlphaDropout(_Dropout, init=False):
    def _dropped(self, input: Tensor, noise_shape: Any) -> Tensor:
        """Sets dropped numbers to the lower limit of SELU, and restores mean and variance."""
        key, p = random.as_key(self.rng), self.p
        if p == 1:
            return input * 0.0
        scale = 1 / sqrt((_SATURATED * _SATURATED * p + 1) * (1 - p))
        kept = random.bernoulli(key, noise_shape, 1 - p, dtype=input.dtype, device=input.device)
        kept = beside(kept, input)
        shift = (kept - 1) * (_SATURATED * scale) + _SATURATED * scale * p
        return input * (kept * scale) + shift


class AlphaDropout(_AlphaDropout, init=False):
    """Dropout that keeps mean and variance: dropped numbers become the lower limit of SELU.

    For networks of SELUs, whose activations have mean 0 and variance 1. The mask is drawn as that
    of ``Dropout``.

    Args:
        p: the probability of being dropped.

    Source: G. Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017.

    Example:
        >>> from parallax import random
        >>> nn.AlphaDropout(0.5).train(random.key(0))(torch.zeros(3))
        tensor([ 0.7792, -0.7792, -0.7792])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with numbers dropped, and its mean and variance restored."""
        if type(input) is not Tensor:
            require_tensor(self, input)
        if self.mode != "train" or self.p == 0:
            return input
        return self._dropped(input, input.shape)


class FeatureAlphaDropout(_AlphaDropout, init=False):
    """Alpha dropout of whole channels; see ``AlphaDropout``.

    Args:
        p: the probability that a channel is dropped.

    Shape:
        - input: ``(N, C, *)``

    Example:
        >>> from parallax import random
        >>> nn.FeatureAlphaDropout(0.25).train(random.key(0))(torch.ones(2, 3, 5, 4)).shape
        torch.Size([2, 3, 5, 4])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input, in training with channels dropped, and its mean and variance restored."""
        if _rank(input) < 2:
            refuse(self, "(N, C, *)", input)
        if self.mode != "train" or self.p == 0:
            return input
        return self._dropped(input, (*input.shape[:2], *(1,) * (input.dim() - 2)))
