"""Pooling by the largest and by the mean of each window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.nn.arguments import Sizes, as_given, integer, per_dim
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in
from parallax.nn.spatial import Spatial, refuse_spatial

__all__ = ["AvgPool1d", "AvgPool2d", "AvgPool3d", "MaxPool1d", "MaxPool2d", "MaxPool3d"]


class _Pool(Spatial):
    """What pools by a sliding window share.

    Args:
        kernel_size: the size of the window: an int or a tuple of {one}, as all sizes here.
        stride: the steps between windows; by default the size of the window.
        ceil_mode: whether windows may reach beyond the end.
    """

    pool: ClassVar[Callable[..., Any]]

    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...]
    padding: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    ceil_mode: bool

    def __init__(
        self, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        self.kernel_size = as_given(name, "kernel_size", kernel_size, dims)
        self.stride = as_given(name, "stride", kernel_size if stride is None else stride, dims)
        self.padding = as_given(name, "padding", padding, dims, least=0)
        self.dilation = as_given(name, "dilation", dilation, dims)
        check_flags(name, ceil_mode=ceil_mode)
        self.ceil_mode = ceil_mode
        spans, sides = self._spans(), per_dim(name, "padding", padding, dims, least=0)
        if any([2 * side > span for side, span in zip(sides, spans, strict=True)]):
            raise ValueError(
                f"{name}(padding=): must be at most half of the window's {spans}, got {padding!r}"
            )

    def _spans(self) -> tuple[int, ...]:
        """The extent of the dilated window along each dimension."""
        sizes, steps = [per_dim("", "", x, self.dims) for x in (self.kernel_size, self.dilation)]
        return tuple([d * (k - 1) + 1 for k, d in zip(sizes, steps, strict=True)])

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        sides = per_dim("", "", self.padding, self.dims, least=0)
        least = [max(span - 2 * side, 1) for span, side in zip(self._spans(), sides, strict=True)]
        refuse_spatial(self, input, self.dims, least=least)


class _MaxPool(_Pool):
    r"""What max pools over one, two and three dimensions share.

    Args:
        padding: how many numbers of minus infinity are added on both sides of each dimension; at
            most half of the window.
        dilation: the distance between the elements of the window.
        return_indices: return a pair, with the flat index of each number in its channel, as
            ``MaxUnpool{n}d`` takes it.

    Shape:
        - output: ``(N, C, *)`` or ``(C, *)``, where each size :math:`L` becomes
          :math:`\lfloor (L + 2\,padding - dilation\,(kernel - 1) - 1) / stride \rfloor + 1`
    """

    return_indices: bool

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        check_flags(type(self).__name__, return_indices=return_indices)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """The largest number of each window; with ``return_indices`` also its index."""
        try:
            return self.pool(
                input, self.kernel_size, self.stride, self.padding, self.dilation,
                self.ceil_mode, self.return_indices,
            )  # fmt: skip
        except (IndexError, RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    extra_repr = shown_as(torch.nn.MaxPool1d)


class _AvgPool(_Pool):
    r"""What mean pools over one, two and three dimensions share.

    Args:
        padding: how many zeros are added on both sides of each dimension; at most half of the
            window.
        count_include_pad: whether those zeros count in the mean.
        divisor_override: what sums are divided by, instead of the number of elements.

    Shape:
        - output: ``(N, C, *)`` or ``(C, *)``, where each size :math:`L` becomes
          :math:`\lfloor (L + 2\,padding - kernel) / stride \rfloor + 1`
    """

    count_include_pad: bool
    divisor_override: int | None

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, 1, ceil_mode)
        name = type(self).__name__
        check_flags(name, count_include_pad=count_include_pad)
        if divisor_override is not None:
            integer(name, divisor_override=divisor_override)
        if divisor_override == 0:
            raise ValueError(f"{name}(divisor_override=): must not be 0")
        self.count_include_pad = count_include_pad
        self.divisor_override = divisor_override

    def forward(self, input: Tensor) -> Tensor:
        """The mean of each window."""
        pooled: Tensor
        try:
            pooled = self.pool(
                input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
                self.count_include_pad, self.divisor_override,
            )  # fmt: skip
        except (IndexError, RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise
        return pooled

    extra_repr = shown_as(torch.nn.AvgPool1d)


class MaxPool1d(_MaxPool, init=False):
    """The largest number of each window of signals, channel by channel.

    Example:
        >>> nn.MaxPool1d(3, stride=2)(torch.ones(2, 9)).shape
        torch.Size([2, 4])
    """

    dims = 1
    pool = staticmethod(F.max_pool1d)


class MaxPool2d(_MaxPool, init=False):
    """The largest number of each window of images, channel by channel.

    Example:
        >>> nn.MaxPool2d(3, stride=2)(torch.ones(2, 9, 7)).shape
        torch.Size([2, 4, 3])
    """

    dims = 2
    pool = staticmethod(F.max_pool2d)


class MaxPool3d(_MaxPool, init=False):
    """The largest number of each window of volumes, channel by channel.

    Example:
        >>> nn.MaxPool3d(3, stride=2)(torch.ones(2, 9, 7, 5)).shape
        torch.Size([2, 4, 3, 2])
    """

    dims = 3
    pool = staticmethod(F.max_pool3d)


class AvgPool1d(_AvgPool):
    """The mean of each window of signals, channel by channel.

    Example:
        >>> nn.AvgPool1d(3, stride=2)(torch.ones(2, 9)).shape
        torch.Size([2, 4])
    """

    dims = 1
    pool = staticmethod(F.avg_pool1d)

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        name, step = "AvgPool1d", kernel_size if stride is None else stride
        # torch makes tuples of these three, and shows them so.
        super().__init__(
            per_dim(name, "kernel_size", kernel_size, 1),
            per_dim(name, "stride", step, 1),
            per_dim(name, "padding", padding, 1, least=0),
            ceil_mode,
            count_include_pad,
        )

    def forward(self, input: Tensor) -> Tensor:
        """The mean of each window."""
        try:
            return F.avg_pool1d(
                input, self.kernel_size, self.stride, self.padding, self.ceil_mode,
                self.count_include_pad,
            )  # fmt: skip
        except (IndexError, RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise


class AvgPool2d(_AvgPool, init=False):
    """The mean of each window of images, channel by channel.

    Example:
        >>> nn.AvgPool2d(3, stride=2)(torch.ones(2, 9, 7)).shape
        torch.Size([2, 4, 3])
    """

    dims = 2
    pool = staticmethod(F.avg_pool2d)


class AvgPool3d(_AvgPool, init=False):
    """The mean of each window of volumes, channel by channel.

    Example:
        >>> nn.AvgPool3d(3, stride=2)(torch.ones(2, 9, 7, 5)).shape
        torch.Size([2, 4, 3, 2])
    """

    dims = 3
    pool = staticmethod(F.avg_pool3d)
