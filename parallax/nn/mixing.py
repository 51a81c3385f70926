"""The mean of the values weighted by attention, without the weights: a kernel, or operators."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from parallax._compat import functorch
from parallax._compat.gradients import WhereRecorded
from parallax.func.attention_formulas import RULES, by_operators
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
        return by_operators(q, k, v, mask, is_causal)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=grouped)
    return _watched(out) if plain else out


_watched: Callable[[Tensor], Tensor] = WhereRecorded(RULES).watch
