"""Whether two tensors are the same bit by bit."""

from __future__ import annotations

import torch
from torch import Tensor

from parallax._compat import functorch

__all__ = ["same_bits"]


def same_bits(one: Tensor, two: Tensor) -> bool:
    """Whether they have the same shape, dtype, device and bits; within transforms, too."""
    if one.shape != two.shape or one.dtype != two.dtype or one.device != two.device:
        return False
    one, two = (torch.func.debug_unwrap(tensor, recurse=True).detach() for tensor in (one, two))
    with functorch.outside_transforms():
        return one.shape == two.shape and _equal_bits(one, two)


def _equal_bits(one: Tensor, two: Tensor) -> bool:
    if one.device.type == "meta" or one.numel() == 0:
        return True
    if one.layout is not torch.strided:
        one, two = one.to_dense(), two.to_dense()
    if one.is_quantized:
        one, two = one.int_repr(), two.int_repr()
    return torch.equal(_bytes(one), _bytes(two))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
