"""Pooling by the power sum of each window."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.nn.arguments import Sizes, as_given, between, is_int, per_dim
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in
from parallax.nn.spatial import Spatial, refuse_spatial

__all__ = ["LPPool1d", "LPPool2d", "LPPool3d"]


class _LPPool(Spatial):
    r"""What power pools over one, two and three dimensions share.

    Args:
        norm_type: the power :math:`p`, not 0; infinity gives the largest absolute value.
        kernel_size: the size of the window: an int or a tuple of {one}, as all sizes here.
        stride: the steps between windows; by default the size of the window.
        ceil_mode: whether windows may reach beyond the end.

    Shape:
        - output: ``(N, C, *)`` or ``(C, *)``, where each size :math:`L` becomes
          :math:`\lfloor (L - kernel) / stride \rfloor + 1`
    """

    mean: ClassVar[Callable[..., Tensor]]
    pool: ClassVar[Callable[..., Tensor]]

    norm_type: float
    kernel_size: int | tuple[int, ...]
    stride: int | tuple[int, ...] | None
    ceil_mode: bool
    elements: int

    def __init__(
        self,
        norm_type: float,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        between(name, -inf, norm_type=norm_type)
        if norm_type == 0:
            raise ValueError(f"{name}(norm_type=): must not be 0")
        self.norm_type = norm_type
        sizes = per_dim(name, "kernel_size", kernel_size, dims)
        self.kernel_size = sizes[0] if dims == 1 or is_int(kernel_size) else sizes
        self.stride = None if stride is None else as_given(name, "stride", stride, dims)
        check_flags(name, ceil_mode=ceil_mode)
        self.ceil_mode = ceil_mode
        # Even powers are not negative, so their signs need no care.
        self.elements = 0 if norm_type % 2 else prod(sizes)

    def forward(self, input: Tensor) -> Tensor:
        """The power mean of each window."""
        power = self.norm_type
        try:
            if self.elements:
                size, step = self.kernel_size, self.stride
                means = self.mean(input.pow(power), size, step, 0, self.ceil_mode)
                return means.relu().mul(self.elements).pow(1 / power)
            return self.pool(input, power, self.kernel_size, self.stride, self.ceil_mode)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        least = per_dim("", "", self.kernel_size, self.dims)
        refuse_spatial(self, input, self.dims, least=least)

    extra_repr = shown_as(torch.nn.LPPool1d)


class LPPool1d(_LPPool, init=False):
    r"""The power sum of each window of signals: :math:`\sqrt[p]{\sum x^p}`, channel by channel.

    Example:
        >>> nn.LPPool1d(2, 3, stride=2)(torch.ones(2, 9)).shape
        torch.Size([2, 4])
    """

    dims = 1
    mean = staticmethod(F.avg_pool1d)
    pool = staticmethod(F.lp_pool1d)


class LPPool2d(_LPPool, init=False):
    r"""The power sum of each window of images: :math:`\sqrt[p]{\sum x^p}`, channel by channel.

    Example:
        >>> nn.LPPool2d(2, 3, stride=2)(torch.ones(2, 9, 7)).shape
        torch.Size([2, 4, 3])
    """

    dims = 2
    mean = staticmethod(F.avg_pool2d)
    pool = staticmethod(F.lp_pool2d)


class LPPool3d(_LPPool, init=False):
    r"""The power sum of each window of volumes: :math:`\sqrt[p]{\sum x^p}`, channel by channel.

    Example:
        >>> nn.LPPool3d(2, 3, stride=2)(torch.ones(2, 9, 7, 5)).shape
        torch.Size([2, 4, 3, 2])
    """

    dims = 3
    mean = staticmethod(F.avg_pool3d)
    pool = staticmethod(F.lp_pool3d)
