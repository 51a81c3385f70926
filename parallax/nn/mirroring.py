"""Padding signals, images and volumes with their own numbers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from parallax.nn.arguments import Sizes
from parallax.nn.padding import Pad
from parallax.nn.refusal import name_in
from parallax.nn.spatial import refuse_spatial

__all__ = [
    "CircularPad1d", "CircularPad2d", "CircularPad3d", "ReflectionPad1d", "ReflectionPad2d",
    "ReflectionPad3d", "ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d",
]  # fmt: skip


class _MirrorPad(Pad):
    """What padding with the input itself shares."""

    how: ClassVar[str]
    beyond: ClassVar[int | None]

    cuts: bool

    def __init__(self, padding: Sizes) -> None:
        super().__init__(padding)
        # Where the input is too short to repeat, torch (2.13) returns uninitialised memory.
        self.cuts = self.how == "circular" and min(self.padding) < 0

    def forward(self, input: Tensor) -> Tensor:
        """The padded input."""
        if self.cuts:
            self._refuse(input)
        try:
            return F.pad(input, self.padding, self.how)
        except (AttributeError, RuntimeError, TypeError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another rank, or shorter than the padding."""
        pairs = list(zip(self.padding[::2], self.padding[1::2], strict=True))[::-1]
        least = [1 if self.beyond is None else max(pair) + self.beyond for pair in pairs]
        for axis, pair in enumerate(pairs):
            cut = -sum([size for size in pair if size < 0])
            least[axis] = max(least[axis] + cut if self.cuts else least[axis], 1 - sum(pair), 1)
        refuse_spatial(self, input, self.dims, least=least)


class ReflectionPad1d(_MirrorPad, init=False):
    """Signals padded by reflection, without repeating the end itself.

    Example:
        >>> nn.ReflectionPad1d(1)(torch.ones(2, 4)).shape
        torch.Size([2, 6])
    """

    dims = 1
    how = "reflect"
    beyond = 1


class ReflectionPad2d(_MirrorPad, init=False):
    """Images padded by reflection, without repeating the end itself.

    Example:
        >>> nn.ReflectionPad2d(1)(torch.ones(2, 4, 4)).shape
        torch.Size([2, 6, 6])
    """

    dims = 2
    how = "reflect"
    beyond = 1


class ReflectionPad3d(_MirrorPad, init=False):
    """Volumes padded by reflection, without repeating the end itself.

    Example:
        >>> nn.ReflectionPad3d(1)(torch.ones(2, 4, 4, 4)).shape
        torch.Size([2, 6, 6, 6])
    """

    dims = 3
    how = "reflect"
    beyond = 1


class ReplicationPad1d(_MirrorPad, init=False):
    """Signals padded by repeating their outermost numbers.

    Example:
        >>> nn.ReplicationPad1d(1)(torch.ones(2, 4)).shape
        torch.Size([2, 6])
    """

    dims = 1
    how = "replicate"
    beyond = None


class ReplicationPad2d(_MirrorPad, init=False):
    """Images padded by repeating their outermost numbers.

    Example:
        >>> nn.ReplicationPad2d(1)(torch.ones(2, 4, 4)).shape
        torch.Size([2, 6, 6])
    """

    dims = 2
    how = "replicate"
    beyond = None


class ReplicationPad3d(_MirrorPad, init=False):
    """Volumes padded by repeating their outermost numbers.

    Example:
        >>> nn.ReplicationPad3d(1)(torch.ones(2, 4, 4, 4)).shape
        torch.Size([2, 6, 6, 6])
    """

    dims = 3
    how = "replicate"
    beyond = None


class CircularPad1d(_MirrorPad, init=False):
    """Signals padded circularly, with numbers from the other end.

    Example:
        >>> nn.CircularPad1d(1)(torch.ones(2, 4)).shape
        torch.Size([2, 6])
    """

    dims = 1
    how = "circular"
    beyond = 0


class CircularPad2d(_MirrorPad, init=False):
    """Images padded circularly, with numbers from the other end.

    Example:
        >>> nn.CircularPad2d(1)(torch.ones(2, 4, 4)).shape
        torch.Size([2, 6, 6])
    """

    dims = 2
    how = "circular"
    beyond = 0


class CircularPad3d(_MirrorPad, init=False):
    """Volumes padded circularly, with numbers from the other end.

    Example:
        >>> nn.CircularPad3d(1)(torch.ones(2, 4, 4, 4)).shape
        torch.Size([2, 6, 6, 6])
    """

    dims = 3
    how = "circular"
    beyond = 0
