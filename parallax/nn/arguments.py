"""What the constructors of layers share: sizes, and where torch's parameters start."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

from torch.nn import init

__all__ = ["positive", "uniform_within"]


def uniform_within(fan: int) -> Any:
    """An initializer: uniform between plus and minus ``1 / sqrt(fan)``."""
    bound = 1 / sqrt(fan) if fan > 0 else 0.0
    return partial(init.uniform_, a=-bound, b=bound)


def positive(layer: str, **sizes: Any) -> None:
    """Raises unless every size is an int of at least one.

    Args:
        layer: the class that was given them.
        **sizes: by the name of the argument.

    Raises:
        TypeError: if one is no int.
        ValueError: if one is less than one.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{layer}({name}=): expected an int, got {size!r}")
        if size < 1:
            raise ValueError(f"{layer}({name}=): must be at least 1, got {size}")
