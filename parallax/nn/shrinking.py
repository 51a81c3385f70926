"""Activations that draw small numbers to zero."""

from __future__ import annotations

from math import inf

import torch.nn.functional as F
from torch import Tensor

from parallax.core.module import Module
from parallax.nn.arguments import between

__all__ = [
    "Hardshrink",
    "Softshrink",
    "Tanhshrink",
]


class Hardshrink(Module):
    r"""Numbers farther from zero than a bound as they are, the others zero.

    Args:
        lambd: the bound.

    Shape:
        - input: ``(*)``, any shape
        - output: the same

    Raises:
        TypeError: if the bound is no number.

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> nn.Hardshrink()(torch.tensor([-2.0, 0.2, 2.0]))
        tensor([-2.,  0.,  2.])
    """

    lambd: float

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        between("Hardshrink", -inf, lambd=lambd)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        """Cut what is small."""
        return F.hardshrink(input, self.lambd)

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        return f"{self.lambd}"


class Softshrink(Module):
    r"""Each number moved towards zero by a bound, and zero where it is within it.

    Args:
        lambd: the bound, not negative.

    Shape:
        - input: ``(*)``, any shape
        - output: the same

    Raises:
        TypeError: if the bound is no number.
        ValueError: if it is negative.

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> nn.Softshrink()(torch.tensor([-2.0, 0.2, 2.0]))
        tensor([-1.5000,  0.0000,  1.5000])
    """

    lambd: float

    def __init__(self, lambd: float = 0.5) -> None:
        super().__init__()
        between("Softshrink", 0, lambd=lambd)
        self.lambd = lambd

    def forward(self, input: Tensor) -> Tensor:
        """Shrink."""
        return F.softshrink(input, self.lambd)

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        return f"{self.lambd}"


class Tanhshrink(Module):
    r"""Each number minus its tanh: :math:`x - \tanh x`.

    Shape:
        - input: ``(*)``, any shape
        - output: the same

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> nn.Tanhshrink()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.0360,  0.0000,  1.0360])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Shrink."""
        return F.tanhshrink(input)
