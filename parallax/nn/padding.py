"""Padding signals, images and volumes with a number."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from parallax.nn.arguments import Sizes, between, per_dim
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, refuse
from parallax.nn.spatial import AXES, Spatial

__all__ = [
    "ConstantPad1d", "ConstantPad2d", "ConstantPad3d", "Pad", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
]  # fmt: skip


class Pad(Spatial):
    """What all padding shares: the amounts, the last dimension first, as in ``F.pad``.

    Args:
        padding: how much, {sides}: an int or a tuple of
            {two}; negative numbers crop.

    Shape:
        - output: likewise, larger by the padding

    Raises:
        ValueError: if there are more or fewer sizes, or the input is of another shape.
    """

    padding: tuple[int, ...]

    def __init__(self, padding: Sizes) -> None:
        super().__init__()
        name = type(self).__name__
        self.padding = per_dim(name, "padding", padding, 2 * self.dims, least=None)

    extra_repr = shown_as(torch.nn.ReflectionPad1d)


class _ConstantPad(Pad):
    """What padding with a number shares.

    Args:
        value: the number to pad with.

    Shape:
        - input: ``(*, {L})``
    """

    value: float

    def __init__(self, padding: Sizes, value: float) -> None:
        super().__init__(padding)
        between(type(self).__name__, -inf, value=value)
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """The padded input."""
        try:
            return torch.constant_pad_nd(input, self.padding, self.value)
        except (RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input has too few dimensions, or is shorter than what is cropped."""
        axes = AXES[self.dims]
        cuts = [max(-size, 0) for size in self.padding]
        least = [a + b for a, b in zip(cuts[::2], cuts[1::2], strict=True)][::-1]
        if isinstance(input, Tensor) and input.dim() >= self.dims:
            sizes = input.shape[-self.dims :]
            if all([size >= low for size, low in zip(sizes, least, strict=True)]):
                return
        bounds = [f"{axis} >= {low}" for axis, low in zip(axes, least, strict=True) if low > 0]
        shape = f"(*, {', '.join(axes)})" + (f" with {', '.join(bounds)}" if bounds else "")
        refuse(self, shape, input)

    extra_repr = shown_as(torch.nn.ConstantPad1d)


class _ZeroPad(_ConstantPad):
    """What padding with zeros shares."""

    def __init__(self, padding: Sizes) -> None:
        super().__init__(padding, 0.0)

    extra_repr = shown_as(torch.nn.ZeroPad1d)


class ConstantPad1d(_ConstantPad, init=False):
    """Signals padded with a number.

    Example:
        >>> nn.ConstantPad1d(1, 1.5)(torch.ones(2, 4)).shape
        torch.Size([2, 6])
    """

    dims = 1


class ConstantPad2d(_ConstantPad, init=False):
    """Images padded with a number.

    Example:
        >>> nn.ConstantPad2d(1, 1.5)(torch.ones(2, 4, 4)).shape
        torch.Size([2, 6, 6])
    """

    dims = 2


class ConstantPad3d(_ConstantPad, init=False):
    """Volumes padded with a number.

    Example:
        >>> nn.ConstantPad3d(1, 1.5)(torch.ones(2, 4, 4, 4)).shape
        torch.Size([2, 6, 6, 6])
    """

    dims = 3


class ZeroPad1d(_ZeroPad, init=False):
    """Signals padded with zeros.

    Example:
        >>> nn.ZeroPad1d(1)(torch.ones(2, 4)).shape
        torch.Size([2, 6])
    """

    dims = 1


class ZeroPad2d(_ZeroPad, init=False):
    """Images padded with zeros.

    Example:
        >>> nn.ZeroPad2d(1)(torch.ones(2, 4, 4)).shape
        torch.Size([2, 6, 6])
    """

    dims = 2


class ZeroPad3d(_ZeroPad, init=False):
    """Volumes padded with zeros.

    Example:
        >>> nn.ZeroPad3d(1)(torch.ones(2, 4, 4, 4)).shape
        torch.Size([2, 6, 6, 6])
    """

    dims = 3
