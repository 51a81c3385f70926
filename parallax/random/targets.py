"""Where the values of a declaration are to be, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from parallax._errors.arguments import device_of
from parallax.core.fields import Lazy

__all__ = ["target_of"]


def target_of(module: Any, leaves: Sequence[Any], device: Any, dtype: Any) -> torch.device | None:
    """The device that values are to be on; raises if anything is no argument of ``initialize``."""
    target = None if device is None else device_of("initialize", device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"initialize(dtype=): expected a torch.dtype, got {dtype!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise TypeError(
            f"initialize(dtype={dtype}): it replaces the dtype of floating leaves and must be "
            f"floating. Give other leaves theirs in place: Parameter(shape, init, dtype={dtype})"
        )
    present = [leaf for leaf in leaves if leaf is not None]
    if present and not any(isinstance(leaf, Lazy) for leaf in present):
        name = type(module).__name__
        raise RuntimeError(
            f"{name} is initialized already. Initialize the declaration again for other values: "
            f"{name.lower()} = {name}(...).initialize(rng)"
        )
    return target
