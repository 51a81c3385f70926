"""Convolutions of signals, images and volumes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._compat.sums import uncut
from parallax._errors.arguments import check_flags
from parallax.core.fields import Parameter
from parallax.nn.arguments import Sizes, at_least, one_of, per_dim, positive, uniform_within
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in
from parallax.nn.spatial import Spatial, refuse_spatial

__all__ = ["Conv1d", "Conv2d", "Conv3d", "in_groups"]


class _Conv(Spatial):
    r"""What convolutions over one, two and three dimensions share.

    Each output channel is a bias plus the sum, over the input channels, of their cross-correlations
    with a kernel.

    Args:
        in_channels: the number of channels of the input.
        out_channels: the number of channels of the output.
        kernel_size: the size of the kernel: an int or a tuple of {one}, as all sizes here.
        stride: the steps between outputs.
        padding: how much is added on both sides of each dimension; ``"same"`` makes the output as
            large as the input (stride 1 only), ``"valid"`` adds nothing.
        dilation: the distance between the elements of the kernel.
        groups: into how many groups the channels are split; each group is convolved on its own.
        bias: whether to add a bias.
        padding_mode: what is added there: ``"zeros"``, ``"reflect"``, ``"replicate"`` or
            ``"circular"``.

    Shape:
        - input: ``(N, in_channels, {L})`` or ``(in_channels, {L})``
        - output: ``(N, out_channels, *)`` or ``(out_channels, *)``, each size :math:`L` becoming
          :math:`\lfloor (L + 2\,padding - dilation\,(kernel - 1) - 1) / stride \rfloor + 1`

    Source: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016.
    """

    # Torch's ``extra_repr`` reads it.
    output_padding: ClassVar[tuple[int, ...]] = (0,)
    convolve: ClassVar[Callable[..., Tensor]]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    border: tuple[int, ...]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: str | Sizes = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        in_groups(name, in_channels, out_channels, groups)
        check_flags(name, bias=bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_dim(name, "kernel_size", kernel_size, dims)
        self.stride = per_dim(name, "stride", stride, dims)
        self.dilation = per_dim(name, "dilation", dilation, dims)
        self.groups = groups
        if isinstance(padding, str):
            self.padding = one_of(name, "padding", padding, "same", "valid")
            if padding == "same" and max(self.stride) > 1:
                raise ValueError(f"{name}(padding='same'): the stride must be 1, got {stride}")
        else:
            self.padding = per_dim(name, "padding", padding, dims, least=0)
        modes = ("zeros", "reflect", "replicate", "circular")
        self.padding_mode = one_of(name, "padding_mode", padding_mode, *modes)
        # Padding other than zeros is added to the input first, and the convolution adds none.
        around = () if padding_mode == "zeros" else self._sides()
        self.border = sum(reversed(around), ())
        # A uniform distribution of variance 1 / (3 fan_in), as torch.nn draws it.
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = Parameter(shape, partial(init.kaiming_uniform_, a=sqrt(5)), dtype=dtype)
        start = uniform_within(prod(shape[1:]))
        self.bias = Parameter((out_channels,), start, dtype=dtype) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of the input."""
        # Torch convolves what is cut along the batch, and nothing that is cut otherwise.
        given, weight, bias = uncut(input, 0), uncut(self.weight), uncut(self.bias)
        try:
            if self.border:
                around = F.pad(given, self.border, self.padding_mode)
                return self.convolve(
                    around, weight, bias, self.stride, 0, self.dilation, self.groups
                )
            return self.convolve(
                given, weight, bias, self.stride, self.padding, self.dilation, self.groups
            )
        except (RuntimeError, TypeError, ValueError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    def _sides(self) -> tuple[tuple[int, int], ...]:
        """The padding before and after each dimension."""
        if self.padding == "same":
            totals = [extent - 1 for extent in self._extents()]
            return tuple([(total // 2, total - total // 2) for total in totals])
        sizes = (0,) * self.dims if isinstance(self.padding, str) else self.padding
        return tuple([(size, size) for size in sizes])

    def _extents(self) -> list[int]:
        """The extent of the dilated kernel along each dimension."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        # Reflection leaves out the end of a signal; circular padding repeats a signal once at most.
        beyond = {"reflect": 1, "circular": 0}.get(self.padding_mode)
        least = [
            max(extent - sum(sides), 1 if beyond is None else max(sides) + beyond)
            for extent, sides in zip(self._extents(), self._sides(), strict=True)
        ]
        refuse_spatial(self, input, self.dims, self.in_channels, least)

    extra_repr = shown_as(torch.nn.Conv1d)


def in_groups(layer: str, in_channels: Any, out_channels: Any, groups: Any) -> None:
    """Raises unless both numbers of channels can be split into the groups.

    Args:
        layer: the class that was given them.
        in_channels: of the input; 0 is allowed, as in torch.
        out_channels: of the output.
        groups: into how many groups the channels are split; each group is convolved on its own.

    Raises:
        TypeError: if one is not an int.
        ValueError: if one is negative or not divisible.
    """
    at_least(layer, 0, in_channels=in_channels, out_channels=out_channels)
    positive(layer, groups=groups)
    for name, channels in {"in_channels": in_channels, "out_channels": out_channels}.items():
        if channels % groups:
            raise ValueError(
                f"{layer}({name}=): must be divisible by groups={groups}, got {channels}"
            )


class Conv1d(_Conv, init=False):
    """A convolution of signals.

    Example:
        >>> nn.Conv1d(2, 4, 3, stride=2).initialize(0)(torch.ones(5, 2, 9)).shape
        torch.Size([5, 4, 4])
    """

    dims = 1
    convolve = staticmethod(F.conv1d)


class Conv2d(_Conv, init=False):
    """A convolution of images.

    Example:
        >>> nn.Conv2d(2, 4, 3, stride=2).initialize(0)(torch.ones(5, 2, 9, 7)).shape
        torch.Size([5, 4, 4, 3])
    """

    dims = 2
    convolve = staticmethod(F.conv2d)


class Conv3d(_Conv, init=False):
    """A convolution of volumes.

    Example:
        >>> nn.Conv3d(2, 4, 3, stride=2).initialize(0)(torch.ones(5, 2, 9, 7, 3)).shape
        torch.Size([5, 4, 4, 3, 1])
    """

    dims = 3
    convolve = staticmethod(F.conv3d)
