"""Other functions in the place of torch's in gradients of gradients that dynamo traces.

Those of ``backward_formulas``, whose own gradients have wrong derivatives. A trace has no nodes of
autograd to look at, so they are replaced where they are called.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import overrides
from parallax._compat.dynamo import constant_in_traces
from parallax._compat.replaced_calls import replace_in_traces
from parallax.func import backward_formulas
from parallax.func.forward_formulas import OTHERS
from parallax.func.jets import NoRuleError
from parallax.func.other import AsItIsError, Other

__all__ = ["replace_what_is_wrong"]


def _i0(function: Any, x: Tensor) -> Tensor:
    return backward_formulas.i0(x)


def _i1(function: Any, x: Tensor) -> Tensor:
    return backward_formulas.i1(x)


def _logit(function: Any, x: Tensor, eps: float | None = None) -> Tensor:
    return backward_formulas.logit(x, eps)


_EPS = frozenset({"eps"})

_OWN = {
    **dict.fromkeys(overrides.functions_named("i0"), Other(_i0, ("input",))),
    **dict.fromkeys(overrides.functions_named("logit"), Other(_logit, ("input",), _EPS)),
    torch.special.i1: Other(_i1, ("input",)),
}

_POINTWISE = *overrides.functions_named("sinc"), *overrides.functions_named("mish"), *_OWN
_ORDERS = {
    **dict.fromkeys(_POINTWISE, 2),
    F.scaled_dot_product_attention: 2,
    F.multi_head_attention_forward: 2,
    F.batch_norm: 2,  # torch fails with a bias and no weight
    torch.batch_norm: 2,
    **dict.fromkeys([F.layer_norm, F.group_norm, F.instance_norm], 3),
    **dict.fromkeys([torch.layer_norm, torch.group_norm, torch.instance_norm], 3),
}
"""From which order on a derivative is wrong, or missing."""

_FORMULAS = {**OTHERS, **_OWN}


@constant_in_traces
def replace_what_is_wrong() -> None:
    """Has dynamo replace these functions where derivatives of derivatives are traced."""
    replace_in_traces(_ORDERS, _replacement)


def _replacement(function: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return _FORMULAS[function](function, args, kwargs)
    except (AsItIsError, NoRuleError):
        return function(*args, **kwargs)
