"""``Elementwise``: the base of activations that compute each number from one."""

from __future__ import annotations

from typing import ClassVar

from parallax.core.module import Module

__all__ = ["Elementwise"]


class Elementwise(Module):
    """A layer that computes each number of the output from one of the input.

    Shape:
        - input, output: ``(*)``, any shape

    Raises:
        TypeError: if an argument is of another type, or the input is not a tensor.
    """

    inplace: ClassVar[bool] = False  # which torch's ``extra_repr`` reads
