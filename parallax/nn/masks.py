"""Masks of attention: checked, and merged into one that is added to the scores."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.nn.refusal import refuse, where

__all__ = ["causal", "check_mask", "merged", "padded"]


def causal(size: int, other: int, device: Any = None) -> Tensor:
    """``True`` where a query would see a later key: ``(size, other)``."""
    return torch.ones(size, other, dtype=torch.bool, device=device).triu(1)


def merged(
    layer: Any,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    q: Tensor,
    k: Tensor,
) -> Tensor:
    """One mask of floats, that broadcasts with ``(N, heads, L, S)``.

    Args:
        layer: for messages.
        attn_mask: as given, or ``None``.
        key_padding_mask: as given, or ``None``.
        is_causal: whether no query sees a later key; a mask that is given says so itself.
        q: the queries, ``(N, heads, L, head_dim)``.
        k: the keys.
    """
    batch, heads, count, others = q.shape[0], q.shape[1], q.shape[2], k.shape[2]
    mask = None
    if attn_mask is None and is_causal:
        attn_mask = causal(count, others, q.device)
    if attn_mask is not None:
        shapes = (count, others), (batch * heads, count, others)
        check_mask(layer, "attn_mask", attn_mask, *shapes)
        mask = _added(attn_mask, q.dtype)
        if mask.dim() == 3:
            mask = mask.reshape(batch, heads, count, others)
        else:
            mask = mask.expand(1, 1, count, others)
    if key_padding_mask is None:
        assert mask is not None
        return mask
    check_mask(layer, "key_padding_mask", key_padding_mask, (batch, others))
    keys = _added(key_padding_mask, q.dtype).reshape(batch, 1, 1, others)
    return keys.expand(batch, 1, count, others) if mask is None else mask + keys


def padded(mask: Tensor | None) -> Tensor | None:
    """The mask for one more key, which all queries see."""
    return None if mask is None else F.pad(mask, (0, 1))


def check_mask(layer: Any, name: str, mask: Any, *shapes: tuple[int, ...]) -> None:
    """Raises unless a mask has one of the shapes, and is made of bools or floats."""
    if not isinstance(mask, Tensor) or mask.shape not in shapes:
        refuse(layer, " or ".join(map(str, shapes)), mask, name)
    if mask.dtype is not torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"{where(layer)}: {name} must be of bools or floats, got {mask.dtype}. "
            f"Write: {name}=mask.bool(), True for what is not seen"
        )


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as numbers that are added to the scores: minus infinity where a bool is true."""
    if mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -inf)
