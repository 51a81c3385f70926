"""Gradients of torch's functions whose own gradients have wrong derivatives.

The third derivatives of the norms are wrong, without an error, and so are derivatives at zero: the
second of ``sinc``, the third of ``i1``. The second of ``mish`` overflows. Where a gradient may be
differentiated again, it is computed anew from the function in operators of which torch has the
derivatives of every order. Where not, nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import functorch, gradients, modes
from parallax.func import attention_formulas
from parallax.func.jet_composed import COMPOSED
from parallax.func.jets import Expansion

__all__ = ["differentiable_within", "gradients_again", "i0", "i1", "logit"]


def gradients_again(nodes: Collection[Any]) -> None:
    """Has the gradients of a graph computed so that they have right derivatives, if recorded.

    Args:
        nodes: of autograd's graph of a function, before it goes backward.
    """
    gradients.have_replaced(nodes, _RULES)


def differentiable_within(out: Tensor) -> bool:
    """Whether what a transform that differentiates computes is itself differentiated.

    Args:
        out: the result of the function, within the transform.
    """
    return (
        sum(functorch.derivatives_running()) > 1
        or modes.forward_level_active()
        or functorch.innermost(out).requires_grad
    )


# -- the functions, from what their nodes keep ----------------------------------------------------


def _kept(node: Any, name: str) -> Any:
    """A tensor that a node keeps, without the wrappers of transforms that have ended."""
    return functorch.unwrapped_if_over(getattr(node, f"_saved_{name}"))


def _sinc(node: Any) -> Any:
    return (_kept(node, "self"),), lambda x: COMPOSED["sinc"](Expansion({}, 0), torch.sinc, x)


def _i0(node: Any) -> Any:
    return (_kept(node, "self"),), i0


def i0(x: Tensor) -> Tensor:
    """``torch.i0``, with the derivatives of every order."""
    return _near(x, torch.i0, lambda k: math.factorial(k) ** -2)


def _i1(node: Any) -> Any:
    return (_kept(node, "self"),), i1


def i1(x: Tensor) -> Tensor:
    """``torch.special.i1``, with the derivatives of every order."""

    def factor(k: int) -> float:
        return 0.5 / (math.factorial(k) * math.factorial(k + 1))

    return _near(x, torch.special.i1, factor, odd=True)


def _near(
    x: Tensor, function: Callable[[Tensor], Tensor], factor: Callable[[int], float],
    odd: bool = False,
) -> Tensor:  # fmt: skip
    """By its series in ``x**2 / 4`` near zero, where torch's derivatives end."""
    wide = _wide(x)
    near = wide.abs() < 1
    inner = torch.where(near, wide, 0)
    quarter = inner * inner / 4
    series = torch.full_like(wide, factor(_TERMS))
    for k in range(_TERMS - 1, -1, -1):
        series = series * quarter + factor(k)
    series = series * inner if odd else series
    return torch.where(near, series, function(torch.where(near, 1, wide))).to(x.dtype)


_TERMS = 12


def _logit(node: Any) -> Any:
    eps = node._saved_eps
    return (_kept(node, "self"),), lambda x: logit(x, eps)


def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """``torch.logit``, with the derivatives of every order."""
    inner = x if eps is None or eps < 0 else x.clamp(eps, 1 - eps)
    return inner.log() - torch.log1p(-inner)


def _mish(node: Any) -> Any:
    return (_kept(node, "self"),), lambda x: COMPOSED["mish"](Expansion({}, 0), F.mish, x)


def _layer_norm(node: Any) -> Any:
    dims = (*range(-len(node._saved_normalized_shape), 0),)
    rstd = _kept(node, "result2")

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return _scaled(_standardised(_wide(x), dims, rstd), weight, bias).to(x.dtype)

    return (_kept(node, "input"), _kept(node, "weight"), _kept(node, "bias")), normed


def _group_norm(node: Any) -> Any:
    x, weight, groups = _kept(node, "input"), _kept(node, "weight"), node._saved_group
    rstd = _kept(node, "result2").reshape(-1, groups, 1)

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        count, channels, *rest = x.shape
        grouped = _standardised(_wide(x).reshape(count, groups, -1), (-1,), rstd)
        column = [1, channels, *[1] * len(rest)]
        return _scaled(grouped.reshape(x.shape), *_columns(column, weight, bias)).to(x.dtype)

    return (x, weight, _bias(x, weight)), normed


def _batch_norm(node: Any) -> Any:
    x, weight = _kept(node, "input"), _kept(node, "weight")
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    moments = (
        None if node._saved_training else (_kept(node, "running_mean"), _kept(node, "running_var"))
    )

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        wide, column = _wide(x), [1, -1, *[1] * (x.dim() - 2)]
        if moments is None:
            dims = (0, *range(2, x.dim()))
            var, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        else:
            mean, var = [moment.reshape(column) for moment in moments]
        out = (wide - mean) * (var + eps).rsqrt()
        return _scaled(out, *_columns(column, weight, bias)).to(x.dtype)

    return (x, weight, _bias(x, weight)), normed


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _standardised(x: Tensor, dims: tuple[int, ...], rstd: Tensor) -> Tensor:
    """Minus the mean, over the deviation; of what was added to the variance nodes keep the sum."""
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    eps = rstd.detach().reshape(var.shape) ** -2 - var.detach()
    return (x - mean) * (var + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _columns(column: list[int], *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.reshape(column) for x in tensors]


def _bias(x: Tensor, weight: Tensor | None) -> Tensor:
    """What stands for a bias, which the node does not keep; no derivative depends on its value."""
    return torch.zeros_like(weight) if weight is not None else _wide(x).new_zeros(x.shape[1])


_RULES: dict[str, gradients.Rule] = {
    **attention_formulas.RULES,
    "I0Backward0": _i0,
    "LogitBackward0": _logit,
    "MishBackward0": _mish,
    "SincBackward0": _sinc,
    "SpecialI1Backward0": _i1,
    "NativeLayerNormBackward0": _layer_norm,
    "NativeGroupNormBackward0": _group_norm,
    "NativeBatchNormBackward0": _batch_norm,
    "CudnnBatchNormBackward0": _batch_norm,
    "MiopenBatchNormBackward0": _batch_norm,
}
"""By the names of the nodes."""
