"""Half precision where torch's kernels have none, or where it would not do."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HALF", "widened"]

HALF = frozenset([torch.bfloat16, torch.float16])


def widened(tensor: Tensor) -> Tensor:
    """The tensor in single precision if it is in half, otherwise as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor
