"""Blocks of images as columns, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.core.module import Module
from parallax.nn.arguments import Sizes, as_given
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, refuse

__all__ = ["Fold", "Unfold"]


class _Blocks(Module):
    """What taking images apart and putting them together share.

    There are L blocks: as many as a convolution with these arguments has outputs.

    Args:
        kernel_size: of a block, an int or a pair.
        dilation: the distance of neighbouring numbers of a block.
        padding: zeros around the image.
        stride: the distance of neighbouring blocks.

    Raises:
        TypeError: if an argument is of another type, or the input is not a tensor.
        ValueError: if an argument is out of range, or the input is of another shape.
    """

    kernel_size: int | tuple[int, ...]
    dilation: int | tuple[int, ...]
    padding: int | tuple[int, ...]
    stride: int | tuple[int, ...]

    def __init__(self, kernel_size: Sizes, dilation: Sizes, padding: Sizes, stride: Sizes) -> None:
        super().__init__()
        name = type(self).__name__
        self.kernel_size = as_given(name, "kernel_size", kernel_size, 2)
        self.dilation = as_given(name, "dilation", dilation, 2)
        self.padding = as_given(name, "padding", padding, 2, 0)
        self.stride = as_given(name, "stride", stride, 2)

    def _counts(self, sizes: Sequence[int]) -> list[int]:
        """How many blocks there are along each dimension of an image."""
        given = [_pair(x) for x in (self.kernel_size, self.dilation, self.padding, self.stride)]
        return [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, padding, stride in zip(sizes, *given, strict=True)
        ]


class Unfold(_Blocks):
    """The blocks of images, each as a column: what a convolution multiplies its weight with.

    Shape:
        - input: ``(N, C, H, W)`` or ``(C, H, W)``
        - output: ``(N, C * kernel_size[0] * kernel_size[1], L)``, or without ``N``

    Example:
        >>> nn.Unfold(2)(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 12, 12])
    """

    def __init__(
        self, kernel_size: Sizes, dilation: Sizes = 1, padding: Sizes = 0, stride: Sizes = 1
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)

    def forward(self, input: Tensor) -> Tensor:
        """The columns."""
        try:
            return F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)
        except (AttributeError, RuntimeError, TypeError) as error:
            given: Any = input
            if not isinstance(given, Tensor) or given.dim() not in (3, 4):
                refuse(self, "(N, C, H, W) or (C, H, W)", given)
            if min(self._counts(given.shape[-2:])) < 1:
                least = [
                    dilation * (kernel - 1) + 1 - 2 * padding
                    for kernel, dilation, padding in zip(
                        *map(_pair, (self.kernel_size, self.dilation, self.padding)), strict=True
                    )
                ]
                refuse(self, f"(N, C, H, W) with H >= {least[0]}, W >= {least[1]}", given)
            name_in(error, self)
            raise

    extra_repr = shown_as(torch.nn.Unfold)


class Fold(_Blocks):
    """Images put together from blocks, each given as a column; where these overlap they are added.

    Args:
        output_size: height and width of the images, an int or a pair.

    Shape:
        - input: ``(N, C * kernel_size[0] * kernel_size[1], L)``, or without ``N``
        - output: ``(N, C, output_size[0], output_size[1])``, or without ``N``

    Example:
        >>> nn.Fold((4, 5), 2)(torch.ones(1, 12, 12)).shape
        torch.Size([1, 3, 4, 5])
    """

    output_size: int | tuple[int, ...]

    def __init__(
        self,
        output_size: Sizes,
        kernel_size: Sizes,
        dilation: Sizes = 1,
        padding: Sizes = 0,
        stride: Sizes = 1,
    ) -> None:
        super().__init__(kernel_size, dilation, padding, stride)
        self.output_size = as_given("Fold", "output_size", output_size, 2)
        if min(self._counts(_pair(self.output_size))) < 1:
            raise ValueError(
                f"Fold(output_size=): a block is larger than {output_size}. "
                f"Write a larger output_size, or kernel_size=1"
            )

    def forward(self, input: Tensor) -> Tensor:
        """The images."""
        try:
            return F.fold(
                input, self.output_size, self.kernel_size, self.dilation, self.padding, self.stride
            )
        except (AttributeError, RuntimeError, TypeError) as error:
            given: Any = input
            rows, columns = _pair(self.kernel_size)
            high, wide = self._counts(_pair(self.output_size))
            fits = isinstance(given, Tensor) and given.dim() in (2, 3)
            if not fits or given.shape[-1] != high * wide or given.shape[-2] % (rows * columns):
                shape = f"C * {rows * columns}, {high * wide}"
                refuse(self, f"(N, {shape}) or ({shape})", given)
            name_in(error, self)
            raise

    extra_repr = shown_as(torch.nn.Fold)


def _pair(sizes: Sizes) -> tuple[int, int]:
    one, two = (sizes, sizes) if isinstance(sizes, int) else sizes
    return one, two
