"""Attention by operators that have every derivative, as torch's fused kernels have not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from parallax._compat import shards
from parallax._compat.gradients import Rule
from parallax._compat.kernels import attention_by_operators

__all__ = ["RULES", "by_operators"]


def by_operators(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None = None,
    grouped: bool | None = None,
) -> Tensor:
    """The mean of the values, weighted by attention; as ``scaled_dot_product_attention``.

    If nobody says whether keys are ``grouped``, they are where there are fewer of their heads.
    """
    causal = is_causal and shards.are_known()  # torch puts a plain mask beside distributed scores
    if causal:
        mask, is_causal = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril(), False
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    if mask is not None and causal:
        mask = shards.beside(mask.to(q.device), q)
    none = None if mask is None else (mask == -math.inf).all(-1, keepdim=True)
    if mask is not None and none is not None:  # of such rows torch's derivatives end in nan
        mask = torch.where(none, 0, mask)
    if grouped is None:
        grouped = k.dim() > 2 and k.shape[-3] != q.shape[-3]
    out: Tensor = attention_by_operators(
        q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
    )[0]
    return out if none is None else torch.where(none, 0, out)


def _rule(node: Any) -> Any:
    masks = [name for name in ("_saved_attn_mask", "_saved_attn_bias") if hasattr(node, name)]
    inputs = (node._saved_query, node._saved_key, node._saved_value)
    mask = getattr(node, masks[0]) if masks else None
    causal, scale = node._saved_is_causal, node._saved_scale

    def again(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return by_operators(q, k, v, mask if bias is None else bias, causal, scale)

    # Some kernels have a gradient for what is added to the scores, too.
    biased = masks == ["_saved_attn_bias"] and len(node.next_functions) > len(inputs)
    return (*inputs, mask) if biased else inputs, again


RULES: dict[str, Rule] = {
    f"ScaledDotProduct{kernel}Backward0": _rule
    for kernel in (
        "FlashAttentionForCpu",
        "FlashAttention",
        "EfficientAttention",
        "CudnnAttention",
        "FusedAttentionOverrideable",
    )
}
"""By the names of the kernels' nodes."""
