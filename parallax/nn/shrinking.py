"""Activations that map small numbers to zero, or close to it."""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.nn.arguments import between
from parallax.nn.elementwise import Elementwise
from parallax.nn.families import shown_as
from parallax.nn.refusal import require_tensor

__all__ = ["Hardshrink", "Softshrink", "Tanhshrink"]


class Hardshrink(Elementwise):
    """Numbers farther from zero than a bound as they are, and zero in place of the others.

    Args:
        lambd: the bound.

    Example:
        >>> nn.Hardshrink()(torch.tensor([-2.0, 0.2, 2.0]))
        tensor([-2.,  0.,  2.])
    """

    lambd: float

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        between("Hardshrink", -inf, lambd=lambd)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        """Each number outside of the bounds, and zero in place of the others."""
        try:
            return F.hardshrink(input, self.lambd)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.Hardshrink)


class Softshrink(Elementwise):
    """Each number moved towards zero by a bound; zero if it is within the bound.

    Args:
        lambd: the bound, not negative.

    Raises:
        ValueError: if it is negative.

    Example:
        >>> nn.Softshrink()(torch.tensor([-2.0, 0.2, 2.0]))
        tensor([-1.5000,  0.0000,  1.5000])
    """

    lambd: float

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        between("Softshrink", 0, lambd=lambd)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        """Each number, moved towards zero."""
        try:
            return F.softshrink(input, self.lambd)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.Softshrink)


class Tanhshrink(Elementwise):
    r"""Each number minus its tanh: :math:`x - \tanh x`.

    Example:
        >>> nn.Tanhshrink()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.0360,  0.0000,  1.0360])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each number minus its tanh."""
        try:
            return F.tanhshrink(input)
        except (AttributeError, TypeError):
            require_tensor(self, input)
            raise
