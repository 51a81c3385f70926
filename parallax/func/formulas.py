"""Functions of torch whose derivatives are wrong, or missing, and what is done about each.

One table by function says what torch has wrong: from which order on, in forward and in reverse mode
(``Other.forward`` and ``reverse``). Of most there is another function of the same value, by
operators of which torch has the derivatives of every order. It takes the function of torch that it
stands for, and its arguments, and raises ``AsItIsError`` where that one is to be called. Of the
others a mode is refused.

Who reads the table: ``forward_again``, where a function is called that is differentiated forwards;
``backward_formulas``, by the nodes of autograd's graph, where a gradient is recorded; and
``traced_formulas``, where dynamo traces a gradient of a gradient, which has no nodes. Operators of
which already the first gradient is wrong, or lost, are in ``_compat/mended`` and
``_compat/underivable``; functions with one derivative only in ``_compat/once``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from parallax._compat import functorch
from parallax.func.attention_formulas import by_operators
from parallax.func.entry_formulas import ENTRIES
from parallax.func.loss_formulas import LOSSES
from parallax.func.matrix_formulas import MATRICES
from parallax.func.norm_formulas import NORMS
from parallax.func.other import AsItIsError, Other
from parallax.func.product_formulas import PRODUCTS
from parallax.func.vector_norm_formulas import VECTOR_NORMS

__all__ = ["OTHERS"]


def _attention(
    function: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """By operators: the fused kernels have no derivative in forward mode."""
    if dropout_p or q.is_nested or (is_causal and attn_mask is not None):
        raise AsItIsError
    return by_operators(q, k, v, attn_mask, is_causal, scale, enable_gqa)


def _attention_layer(function: Any, *args: Any, **kwargs: Any) -> Any:
    """In whose code torch lets nobody replace the function above."""
    with functorch.one_thread(), sdpa_kernel(SDPBackend.MATH):  # it is set for the process
        return function(*args, **kwargs)


_LAYER = inspect.signature(F.multi_head_attention_forward).parameters.values()

_ATTENTION: dict[Any, Other] = {
    F.scaled_dot_product_attention: Other(
        _attention,
        ("query", "key", "value"),
        frozenset({"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}),
        forward=1,
        reverse=2,
    ),
    F.multi_head_attention_forward: Other(
        _attention_layer,
        [x.name for x in _LAYER if x.default is x.empty],
        frozenset([x.name for x in _LAYER if x.default is not x.empty]),
        forward=1,
        reverse=2,
    ),
}

OTHERS: dict[Any, Other] = {
    **ENTRIES,
    **PRODUCTS,
    **MATRICES,
    **VECTOR_NORMS,
    **NORMS,
    **LOSSES,
    **_ATTENTION,
}
"""What is computed in place of which function."""
