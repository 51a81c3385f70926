"""The mean of the values weighted by attention, without the weights: a kernel, or operators."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import functorch
from parallax._compat.gradients import WhereRecorded
from parallax._compat.kernels import attention_by_operators
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most

__all__ = ["mixed"]


def mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    """The mean of the values, weighted by attention.

    Args:
        q: the queries, ``(N, heads, L, head_dim)``.
        k: the keys, with as many heads or a divisor of that.
        v: the values.
        mask: what is added to the scores; or bools, ``True`` for what is seen.
        is_causal: whether no query sees a later key, if there is no mask.
    """
    grouped = k.shape[1] != q.shape[1]
    plain = in_plain_eager_code()
    # The kernels have one derivative, and no rule for vmap, which would loop over the examples.
    mapped = not plain and functorch.vmap_in_trace()
    if not plain and (mapped or not one_derivative_at_most(q, k, v, mask, forward=False)):
        return _by_operators(q, k, v, mask, is_causal)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=grouped)
    return _watched(out) if plain else out


def _by_operators(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None = None,
) -> Tensor:
    if mask is not None and mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -inf)
    out: Tensor = attention_by_operators(
        q, k, v, mask, is_causal=is_causal, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )[0]
    return out


def _rule(node: Any) -> Any:
    masks = [name for name in ("_saved_attn_mask", "_saved_attn_bias") if hasattr(node, name)]
    inputs = (node._saved_query, node._saved_key, node._saved_value)
    mask = getattr(node, masks[0]) if masks else None
    causal, scale = node._saved_is_causal, node._saved_scale

    def again(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        return _by_operators(q, k, v, mask if bias is None else bias, causal, scale)

    # Some kernels have a gradient for what is added to the scores, too.
    biased = masks == ["_saved_attn_bias"] and len(node.next_functions) > len(inputs)
    return (*inputs, mask) if biased else inputs, again


_watched: Callable[[Tensor], Tensor] = WhereRecorded(
    {
        f"ScaledDotProduct{kernel}Backward0": _rule
        for kernel in (
            "FlashAttentionForCpu",
            "FlashAttention",
            "EfficientAttention",
            "CudnnAttention",
            "FusedAttentionOverrideable",
        )
    }
).watch
