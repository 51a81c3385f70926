"""Transposed convolutions of signals, images and volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod, sqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._compat.gradients import WhereRecorded
from parallax._compat.sums import uncut
from parallax._errors.arguments import check_flags
from parallax.core.fields import Parameter
from parallax.nn.arguments import Sizes, one_of, per_dim, uniform_within
from parallax.nn.conv import in_groups
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, where
from parallax.nn.spatial import Spatial, refuse_sizes, refuse_spatial

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]


def _cropped(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    beyond: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Tensor:
    """A transposed convolution without output padding, cut to size.

    Torch has no third derivative of one with it (2.13).
    """
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(stride) - 1]
    whole = convolve(input, weight, None, tuple(stride), 0, 0, groups, tuple(dilation))
    ends = zip(reversed(padding), reversed(beyond), strict=True)
    out = F.pad(whole, [end for inside, more in ends for end in (-inside, more - inside)])
    return out if bias is None else out + bias.view(-1, *[1] * len(stride))


def _rule(node: Any) -> Any:
    weight, groups = node._saved_weight, node._saved_groups
    stride, padding, dilation = node._saved_stride, node._saved_padding, node._saved_dilation
    beyond = node._saved_output_padding

    def again(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _cropped(input, weight, bias, stride, padding, beyond, groups, dilation)

    # The node keeps no bias.
    return (node._saved_input, weight, weight.new_zeros(weight.shape[1] * groups)), again


_watched = WhereRecorded({"ConvolutionBackward0": _rule}).watch


class _ConvTranspose(Spatial):
    r"""What transposed convolutions over one, two and three dimensions share.

    Each element of an input channel adds its multiple of a kernel to the output. It is the gradient
    of ``Conv{n}d`` with respect to its input, not its inverse.

    Args:
        in_channels: the number of channels of the input.
        out_channels: the number of channels of the output.
        kernel_size: the size of the kernel: an int or a tuple of {one}, as all sizes here.
        stride: the steps on the output between neighbours of the input.
        padding: how much is removed on both sides of each dimension of the output.
        output_padding: how much longer the output is at its end; a convolution with a stride has
            the same output for inputs of several sizes.
        groups: into how many groups the channels are split; each group is convolved on its own.
        bias: whether to add a bias.
        dilation: the distance between the elements of the kernel.
        padding_mode: only ``"zeros"``, as in torch.

    Shape:
        - input: ``(N, in_channels, {L})`` or ``(in_channels, {L})``
        - output: ``(N, out_channels, *)`` or ``(out_channels, *)``, each size :math:`L` becoming
          :math:`(L - 1)\,stride - 2\,padding + dilation\,(kernel - 1) + output\_padding + 1`

    Raises:
        ValueError: if an argument is out of range, the input is of another shape, or an
            ``output_size`` cannot be had.

    Source: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016.
    """

    # Torch's ``extra_repr`` reads it.
    padding_mode: ClassVar[str] = "zeros"
    convolve: ClassVar[Callable[..., Tensor]]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        in_groups(name, in_channels, out_channels, groups)
        check_flags(name, bias=bias)
        one_of(name, "padding_mode", padding_mode, "zeros")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = per_dim(name, "kernel_size", kernel_size, dims)
        self.stride = per_dim(name, "stride", stride, dims)
        self.padding = per_dim(name, "padding", padding, dims, least=0)
        self.output_padding = per_dim(name, "output_padding", output_padding, dims, least=0)
        self.groups = groups
        self.dilation = per_dim(name, "dilation", dilation, dims)
        for more, steps in zip(
            self.output_padding, zip(self.stride, self.dilation, strict=True), strict=True
        ):
            if more >= max(steps):
                raise ValueError(
                    f"{name}(output_padding=): must be less than the stride or the dilation "
                    f"(here {max(steps)}), got {output_padding}"
                )
        # A uniform distribution of variance 1 / (3 fan_in), as torch.nn draws it.
        shape = (in_channels, out_channels // groups, *self.kernel_size)
        self.weight = Parameter(shape, partial(init.kaiming_uniform_, a=sqrt(5)), dtype=dtype)
        start = uniform_within(prod(shape[1:]))
        self.bias = Parameter((out_channels,), start, dtype=dtype) if bias else None

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The transposed convolution; ``output_size``, if given, replaces ``output_padding``."""
        # Torch convolves what is cut along the batch, and nothing that is cut otherwise.
        given, weight, bias = uncut(input, 0), uncut(self.weight), uncut(self.bias)
        try:
            if output_size is None:
                beyond = self.output_padding
            else:
                self._refuse(input)
                beyond = self._beyond(given, output_size)
            rest = self.stride, self.padding, beyond, self.groups, self.dilation
            if not any(beyond):
                return self.convolve(given, weight, bias, *rest)
            if in_plain_eager_code():
                return _watched(self.convolve(given, weight, bias, *rest))
            if one_derivative_at_most(given, weight, bias):
                return self.convolve(given, weight, bias, *rest)
            return _cropped(given, weight, bias, *rest)
        except (RuntimeError, TypeError) as error:
            self._refuse(input)
            refuse_sizes(self, output_size)
            name_in(error, self)
            raise

    def _beyond(self, input: Tensor, output_size: Sequence[int]) -> tuple[int, ...]:
        """The output padding for an output of the given size."""
        wanted = tuple(output_size)
        if len(wanted) == input.dim():
            wanted = wanted[-self.dims :]
        least = [
            (size - 1) * s - 2 * p + d * (k - 1) + 1
            for size, s, p, d, k in zip(
                input.shape[-self.dims :],
                self.stride,
                self.padding,
                self.dilation,
                self.kernel_size,
                strict=True,
            )
        ]
        most = [low + s - 1 for low, s in zip(least, self.stride, strict=True)]
        if len(wanted) != self.dims or not all(
            [low <= size <= high for low, size, high in zip(least, wanted, most, strict=True)]
        ):
            ranges = ", ".join([f"{a} to {b}" for a, b in zip(least, most, strict=True)])
            raise ValueError(
                f"{where(self)}: output_size must be within ({ranges}) for this input, "
                f"got {tuple(output_size)}"
            )
        return tuple([size - low for size, low in zip(wanted, least, strict=True)])

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        refuse_spatial(self, input, self.dims, self.in_channels)

    extra_repr = shown_as(torch.nn.ConvTranspose1d)


class ConvTranspose1d(_ConvTranspose, init=False):
    """The transpose of the convolution of signals with the same arguments.

    Example:
        >>> nn.ConvTranspose1d(4, 2, 3, stride=2).initialize(0)(torch.ones(5, 4, 4)).shape
        torch.Size([5, 2, 9])
    """

    dims = 1
    convolve = staticmethod(F.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, init=False):
    """The transpose of the convolution of images with the same arguments.

    Example:
        >>> nn.ConvTranspose2d(4, 2, 3, stride=2).initialize(0)(torch.ones(5, 4, 4, 3)).shape
        torch.Size([5, 2, 9, 7])
    """

    dims = 2
    convolve = staticmethod(F.conv_transpose2d)


class ConvTranspose3d(_ConvTranspose, init=False):
    """The transpose of the convolution of volumes with the same arguments.

    Example:
        >>> nn.ConvTranspose3d(4, 2, 3, stride=2).initialize(0)(torch.ones(5, 4, 4, 3, 1)).shape
        torch.Size([5, 2, 9, 7, 3])
    """

    dims = 3
    convolve = staticmethod(F.conv_transpose3d)
