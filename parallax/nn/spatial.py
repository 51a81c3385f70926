"""What layers of signals, images and volumes share: their shapes, and the errors of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.core.module import Module
from parallax.nn.refusal import refuse, where

__all__ = ["AXES", "Spatial", "refuse_sizes", "refuse_spatial"]

AXES = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}
"""What the spatial dimensions are called, by how many there are."""


class Spatial(Module, init=False):
    """A layer over one, two or three dimensions, each after a dimension of channels.

    Shape:
        - input: ``(N, C, {L})`` or ``(C, {L})``

    Raises:
        TypeError: if an argument is of another type, or the input is not a tensor.
        ValueError: if an argument is out of range, or the input is of another shape.
    """

    dims: ClassVar[int]

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        refuse_spatial(self, input, self.dims)


def refuse_spatial(
    layer: Any,
    input: Any,
    dims: int,
    channels: int | None = None,
    least: Sequence[int] | int = 1,
    name: str = "input",
) -> None:
    """Raises if an input is not ``(C, *spatial)`` or ``(N, C, *spatial)``, and returns otherwise.

    Args:
        layer: the module that was called.
        input: what it was called with.
        dims: the number of spatial dimensions.
        channels: the number of channels, if it matters.
        least: the least size of each spatial dimension.
        name: the name of the argument.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it is of another shape.
    """
    smallest = (least,) * dims if isinstance(least, int) else tuple(least)
    # By comparisons: dynamo finds no number that may vary "in" a tuple of such (2.13).
    if isinstance(input, Tensor) and dims + 1 <= input.dim() <= dims + 2:
        enough = all([size >= low for size, low in zip(input.shape[-dims:], smallest, strict=True)])
        found = input.shape[-dims - 1]
        if enough and (found > 0 if channels is None else found == channels):
            return
    axes = AXES[dims]
    shape = ", ".join(["C" if channels is None else str(channels), *axes])
    bounds = [("C", 1)] if channels is None else []
    bounds += zip(axes, smallest, strict=True)
    # Mentioned only if the input is empty.
    said = 0 if isinstance(input, Tensor) and 0 in input.shape else 1
    limits = ", ".join([f"{axis} >= {low}" for axis, low in bounds if low > said])
    expected = f"({shape}) or (N, {shape})" + (f" with {limits}" if limits else "")
    refuse(layer, expected, input, name)


def refuse_sizes(layer: Module, given: Any) -> None:
    """Raises if the ``output_size`` that a call was given is neither ``None`` nor some sizes."""
    ints = (int, torch.SymInt)
    several = isinstance(given, (tuple, list)) and all([isinstance(n, ints) for n in given])
    if given is not None and not several:
        raise TypeError(
            f"{where(layer)}: output_size must be a tuple of ints, got {shown(given)}. "
            f"Give the sizes of an input: output_size=x.shape[-1:]"
        )
