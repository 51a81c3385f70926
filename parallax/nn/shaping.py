"""Layers that only rearrange numbers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.core.module import Module
from parallax.nn.arguments import integer, is_int, positive
from parallax.nn.families import shown_as
from parallax.nn.refusal import refuse

__all__ = ["ChannelShuffle", "Flatten", "PixelShuffle", "PixelUnshuffle", "Unflatten"]


class Flatten(Module):
    """Merges several neighbouring dimensions into one.

    Args:
        start_dim: the first of them.
        end_dim: the last of them.

    Shape:
        - input: ``(*, S_start, ..., S_end, *)``
        - output: ``(*, S_start * ... * S_end, *)``

    Raises:
        TypeError: if an argument is not an int, or the input is not a tensor.
        IndexError: if the input has no such dimension.
        ValueError: if the last dimension comes before the first.

    Example:
        >>> nn.Flatten()(torch.ones(2, 3, 4)).shape
        torch.Size([2, 12])
    """

    start_dim: int
    end_dim: int

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        integer("Flatten", start_dim=start_dim, end_dim=end_dim)
        if start_dim * end_dim > 0 and start_dim > end_dim:
            raise ValueError(
                f"Flatten(end_dim=): must not come before start_dim={start_dim}, got {end_dim}"
            )
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        """The flattened input."""
        try:
            return input.flatten(self.start_dim, self.end_dim)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            self._refuse(input)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input has no such dimensions."""
        span = f"dimensions {self.start_dim} to {self.end_dim}"
        refuse(self, f"(*) with {span}", input)

    extra_repr = shown_as(torch.nn.Flatten)


class Unflatten(Module):
    """Splits one dimension into several.

    Args:
        dim: which one.
        unflattened_size: their sizes; one of them may be -1, which is computed from the others.

    Shape:
        - input: ``(*, S_dim, *)``
        - output: ``(*, *unflattened_size, *)``, where the product of the sizes is ``S_dim``

    Raises:
        TypeError: if an argument is not an int, or the input is not a tensor.
        IndexError: if the input has no such dimension.
        ValueError: if the sizes cannot be, or the dimension has another size.

    Example:
        >>> nn.Unflatten(1, (3, -1))(torch.ones(2, 12)).shape
        torch.Size([2, 3, 4])
    """

    dim: int
    unflattened_size: tuple[int, ...]

    def __init__(self, dim: int, unflattened_size: tuple[int, ...]) -> None:
        super().__init__()
        integer("Unflatten", dim=dim)
        sizes: Any = unflattened_size
        if not isinstance(sizes, (tuple, list)) or not all(map(is_int, sizes)):
            raise TypeError(
                f"Unflatten(unflattened_size=): expected ints, got {shown(sizes)}. "
                f"Write unflattened_size=(2, 2)"
            )
        if not sizes or min(sizes) < -1 or list(sizes).count(-1) > 1:
            raise ValueError(
                f"Unflatten(unflattened_size=): expected sizes, at most one of them -1, "
                f"got {sizes!r}"
            )
        self.dim = dim
        self.unflattened_size = tuple(sizes)

    def forward(self, input: Tensor) -> Tensor:
        """The input with one dimension split into several."""
        try:
            several: Tensor = input.unflatten(self.dim, self.unflattened_size)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            refuse(self, f"(*) whose dimension {self.dim} fits {self.unflattened_size}", input)
        return several

    extra_repr = shown_as(torch.nn.Unflatten)


class PixelShuffle(Module):
    """Makes larger images of channels: r x r channels become r x r pixels.

    Args:
        upscale_factor: r.

    Shape:
        - input: ``(*, C * r * r, H, W)``
        - output: ``(*, C, H * r, W * r)``

    Raises:
        TypeError: if the factor is not an int, or the input is not a tensor.
        ValueError: if the factor is not positive, or the input is of another shape.

    Source: W. Shi and others, "Real-Time Single Image and Video Super-Resolution Using an
    Efficient Sub-Pixel Convolutional Neural Network", 2016.

    Example:
        >>> nn.PixelShuffle(2)(torch.ones(1, 12, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    upscale_factor: int

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        positive("PixelShuffle", upscale_factor=upscale_factor)
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        """The larger image."""
        try:
            return F.pixel_shuffle(input, self.upscale_factor)
        except (RuntimeError, TypeError):
            refuse(self, f"(*, C * {self.upscale_factor**2}, H, W)", input)

    extra_repr = shown_as(torch.nn.PixelShuffle)


class PixelUnshuffle(Module):
    """Makes smaller images with more channels: r x r pixels become r x r channels.

    Args:
        downscale_factor: r.

    Shape:
        - input: ``(*, C, H * r, W * r)``
        - output: ``(*, C * r * r, H, W)``

    Raises:
        TypeError: if the factor is not an int, or the input is not a tensor.
        ValueError: if the factor is not positive, or the input is of another shape.

    Source: W. Shi and others, "Real-Time Single Image and Video Super-Resolution Using an
    Efficient Sub-Pixel Convolutional Neural Network", 2016.

    Example:
        >>> nn.PixelUnshuffle(2)(torch.ones(1, 3, 8, 10)).shape
        torch.Size([1, 12, 4, 5])
    """

    downscale_factor: int

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        positive("PixelUnshuffle", downscale_factor=downscale_factor)
        self.downscale_factor = downscale_factor

    def forward(self, input: Tensor) -> Tensor:
        """The smaller image."""
        try:
            return F.pixel_unshuffle(input, self.downscale_factor)
        except (RuntimeError, TypeError):
            refuse(self, f"(*, C, H * {self.downscale_factor}, W * {self.downscale_factor})", input)

    extra_repr = shown_as(torch.nn.PixelUnshuffle)


class ChannelShuffle(Module):
    """Interleaves the channels of groups: the first of each group, then the second of each.

    Args:
        groups: how many groups.

    Shape:
        - input: ``(N, groups * C, *)``, with at least one more dimension
        - output: the same

    Raises:
        TypeError: if the number of groups is not an int, or the input is not a tensor.
        ValueError: if it is not positive, or the input is of another shape.

    Source: X. Zhang and others, "ShuffleNet", 2018.

    Example:
        >>> nn.ChannelShuffle(2)(torch.arange(4).reshape(1, 4, 1)).flatten()
        tensor([0, 2, 1, 3])
    """

    groups: int

    def __init__(self, groups: int) -> None:
        super().__init__()
        positive("ChannelShuffle", groups=groups)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        """The input with its channels in the shuffled order."""
        try:
            return F.channel_shuffle(input, self.groups)
        except (RuntimeError, TypeError):
            refuse(self, f"(N, {self.groups} * C, *) of 3 dimensions or more", input)

    extra_repr = shown_as(torch.nn.ChannelShuffle)
