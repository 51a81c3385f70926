"""Pooling into a number of windows, by the largest and by the mean of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags, shown
from parallax.nn.arguments import is_int
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in
from parallax.nn.spatial import Spatial

__all__ = [
    "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d", "AdaptiveMaxPool3d",
]  # fmt: skip

OutputSize = int | tuple[int | None, ...]
"""One size for every dimension, or one for each, ``None`` being that of the input."""


class _Adaptive(Spatial):
    """What adaptive pools share.

    The windows are as equal as can be, and overlap by one where they must.

    Args:
        output_size: how many windows: an int or a tuple of {one}; over more than one dimension
            ``None`` means the size of the input.

    Shape:
        - output: ``(N, C, *)`` or ``(C, *)`` with the sizes of ``output_size``

    Raises:
        TypeError: if a size is not an int, or the input is not a tensor.
        ValueError: if a size is negative, or the input is of another shape.
    """

    pool: ClassVar[Callable[..., Any]]

    output_size: OutputSize

    def __init__(self, output_size: OutputSize) -> None:
        super().__init__()
        self.output_size = _output_size(type(self).__name__, output_size, self.dims)

    extra_repr = shown_as(torch.nn.AdaptiveAvgPool1d)


class _AdaptiveMaxPool(_Adaptive):
    """What adaptive max pools share.

    Args:
        return_indices: return a pair, with the flat index of each number in its channel, as
            ``MaxUnpool{n}d`` takes it.
    """

    return_indices: bool

    def __init__(self, output_size: OutputSize, return_indices: bool = False) -> None:
        super().__init__(output_size)
        check_flags(type(self).__name__, return_indices=return_indices)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """The largest number of each window; with ``return_indices`` also its index."""
        try:
            return self.pool(input, self.output_size, self.return_indices)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(input)
            name_in(error, self)
            raise


class _AdaptiveAvgPool(_Adaptive, init=False):
    """What adaptive mean pools share."""

    def forward(self, input: Tensor) -> Tensor:
        """The mean of each window."""
        pooled: Tensor
        try:
            pooled = self.pool(input, self.output_size)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(input)
            name_in(error, self)
            raise
        return pooled


def _output_size(layer: str, size: Any, dims: int) -> Any:
    """A checked size; a list becomes a tuple."""
    several = isinstance(size, (tuple, list))
    sizes = tuple(size) if several else (size,)
    if len(sizes) != (dims if several else 1) or not all(
        [is_int(n) or (n is None and several and dims > 1) for n in sizes]
    ):
        raise TypeError(
            f"{layer}(output_size=): expected an int or {dims} of them, got {shown(size)}. "
            f"Write output_size=2 or output_size={(2,) * dims}"
        )
    if any([n is not None and n < 0 for n in sizes]):
        raise ValueError(f"{layer}(output_size=): must not be negative, got {size!r}")
    return sizes if several else size


class AdaptiveMaxPool1d(_AdaptiveMaxPool, init=False):
    """The largest number of each of a given number of windows of signals, channel by channel.

    Example:
        >>> nn.AdaptiveMaxPool1d(3)(torch.ones(2, 9)).shape
        torch.Size([2, 3])
    """

    dims = 1
    pool = staticmethod(F.adaptive_max_pool1d)


class AdaptiveMaxPool2d(_AdaptiveMaxPool, init=False):
    """The largest number of each of a given number of windows of images, channel by channel.

    Example:
        >>> nn.AdaptiveMaxPool2d(3)(torch.ones(2, 9, 7)).shape
        torch.Size([2, 3, 3])
    """

    dims = 2
    pool = staticmethod(F.adaptive_max_pool2d)


class AdaptiveMaxPool3d(_AdaptiveMaxPool, init=False):
    """The largest number of each of a given number of windows of volumes, channel by channel.

    Example:
        >>> nn.AdaptiveMaxPool3d(3)(torch.ones(2, 9, 7, 5)).shape
        torch.Size([2, 3, 3, 3])
    """

    dims = 3
    pool = staticmethod(F.adaptive_max_pool3d)


class AdaptiveAvgPool1d(_AdaptiveAvgPool, init=False):
    """The mean of each of a given number of windows of signals, channel by channel.

    Example:
        >>> nn.AdaptiveAvgPool1d(3)(torch.ones(2, 9)).shape
        torch.Size([2, 3])
    """

    dims = 1
    pool = staticmethod(F.adaptive_avg_pool1d)


class AdaptiveAvgPool2d(_AdaptiveAvgPool, init=False):
    """The mean of each of a given number of windows of images, channel by channel.

    Example:
        >>> nn.AdaptiveAvgPool2d(3)(torch.ones(2, 9, 7)).shape
        torch.Size([2, 3, 3])
    """

    dims = 2
    pool = staticmethod(F.adaptive_avg_pool2d)


class AdaptiveAvgPool3d(_AdaptiveAvgPool, init=False):
    """The mean of each of a given number of windows of volumes, channel by channel.

    Example:
        >>> nn.AdaptiveAvgPool3d(3)(torch.ones(2, 9, 7, 5)).shape
        torch.Size([2, 3, 3, 3])
    """

    dims = 3
    pool = staticmethod(F.adaptive_avg_pool3d)
