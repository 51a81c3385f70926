"""Activations along a dimension: softmax and similar functions, and gated linear units."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.core.module import Module
from parallax.nn.arguments import integer
from parallax.nn.exactness import derived_forward
from parallax.nn.families import shown_as
from parallax.nn.refusal import refuse, where

__all__ = ["GLU", "LogSoftmax", "Softmax", "Softmax2d", "Softmin"]


class _AlongOne(Module):
    """What layers that normalise along a dimension share.

    Args:
        dim: the dimension along which the exponentials sum to one.

    Shape:
        - input: ``(*)``, of a shape that has the dimension
        - output: the same

    Raises:
        TypeError: if ``dim`` is not an int, or the input is not a tensor.
        IndexError: if the input has no such dimension.
    """

    dim: int

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dimension(type(self).__name__, dim)

    extra_repr = shown_as(torch.nn.Softmax)


class Softmax(_AlongOne, init=False):
    r"""Exponentials that sum to one: :math:`e^{x_i} / \sum_j e^{x_j}`.

    Example:
        >>> nn.Softmax(-1)(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.0900, 0.2447, 0.6652])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The softmax along ``dim``."""
        try:
            return input.softmax(self.dim)
        except (AttributeError, IndexError, TypeError):
            require_dim(self, input, self.dim)
            raise


class Softmin(_AlongOne, init=False):
    r"""The ``Softmax`` of the negated numbers: :math:`e^{-x_i} / \sum_j e^{-x_j}`.

    Example:
        >>> nn.Softmin(-1)(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.6652, 0.2447, 0.0900])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The softmax of the negated numbers along ``dim``."""
        try:
            return (-input).softmax(self.dim)
        except (AttributeError, IndexError, TypeError):
            require_dim(self, input, self.dim)
            raise


class LogSoftmax(_AlongOne, init=False):
    r"""The logarithm of the ``Softmax``: :math:`x_i - \log \sum_j e^{x_j}`.

    Example:
        >>> nn.LogSoftmax(-1)(torch.tensor([0.0, 1.0, 2.0]))
        tensor([-2.4076, -1.4076, -0.4076])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The logarithm of the softmax along ``dim``."""
        try:
            return input.log_softmax(self.dim)
        except (AttributeError, IndexError, TypeError):
            require_dim(self, input, self.dim)
            raise


class Softmax2d(Module):
    """The ``Softmax`` over the channels of images, at each pixel.

    Shape:
        - input: ``(N, C, H, W)`` or ``(C, H, W)``
        - output: the same

    Raises:
        TypeError: if the input is not a tensor.
        ValueError: if it is of another shape.

    Example:
        >>> nn.Softmax2d()(torch.zeros(2, 1, 1)).flatten()
        tensor([0.5000, 0.5000])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The softmax over the channels, at each pixel."""
        given: Any = input
        if not isinstance(given, Tensor) or given.dim() not in (3, 4):
            refuse(self, "(C, H, W) or (N, C, H, W)", given)
        return given.softmax(-3)


class GLU(Module):
    r"""The first half of the numbers, gated by the sigmoid of the second: :math:`a \sigma(b)`.

    Args:
        dim: the dimension that is halved.

    Shape:
        - input: ``(*, 2 n, *)``
        - output: ``(*, n, *)``

    Raises:
        TypeError: if ``dim`` is not an int, or the input is not a tensor.
        IndexError: if the input has no such dimension.
        ValueError: if its size is odd.

    Source: Y. Dauphin and others, "Language Modeling with Gated Convolutional Networks", 2017.

    Example:
        >>> nn.GLU()(torch.tensor([1.0, 2.0, 0.0, 2.0]))
        tensor([0.5000, 1.7616])
    """

    dim: int

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dimension("GLU", dim)

    def forward(self, input: Tensor) -> Tensor:
        """The first half, times the sigmoid of the second."""
        try:
            if derived_forward() and input.shape[self.dim] % 2 == 0:
                # The kernel's forward derivative has no derivative.
                half, gates = input.chunk(2, self.dim)
                return half * gates.sigmoid()
            return F.glu(input, self.dim)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            require_dim(self, input, self.dim)
            if input.shape[self.dim] % 2:
                refuse(self, f"(*) with an even size of dimension {self.dim}", input)
            raise

    extra_repr = shown_as(torch.nn.GLU)


def dimension(layer: str, dim: Any) -> int:
    """Raises unless the index of a dimension is an int."""
    integer(layer, dim=dim)
    return int(dim)


def require_dim(layer: Module, input: Any, dim: int) -> None:
    """Raises unless an input is a tensor that has a dimension."""
    if not isinstance(input, Tensor):
        refuse(layer, "(*)", input)
    if not -input.dim() <= dim < input.dim():
        raise IndexError(
            f"{where(layer)}: expected input with a dimension {dim}, got shape {tuple(input.shape)}"
        )
