"""Gradients of torch's functions whose own gradients have wrong derivatives, on autograd's tape.

Those of which ``formulas`` says so. Where a gradient may be differentiated again, it is computed
anew from the function in operators of which torch has the derivatives of every order, which is
found by the node that torch has for it. Where not, nothing changes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from parallax._compat import functorch, gradients, modes
from parallax.func import attention_formulas
from parallax.func.formulas import OTHERS
from parallax.func.jets import NoRuleError
from parallax.func.other import AsItIsError, Other, in_single

__all__ = ["differentiable_within", "gradients_again"]


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


def _by_table(other: Other) -> gradients.Rule:
    """Of a function whose node keeps what it is computed from."""

    def rule(node: Any) -> Any:
        options = {name: getattr(node, f"_saved_{name}") for name in other.node[1:]}

        def function(*tensors: Tensor) -> Any:
            try:
                return other.compute(None, *tensors, **options)
            except NoRuleError:
                raise AsItIsError from None

        return [_kept(node, name) for name in other.kept], function

    return rule


def _layer_norm(node: Any) -> Any:
    dims = (*range(-len(node._saved_normalized_shape), 0),)
    rstd = _kept(node, "result2")

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Outputs:
        out, mean, root = _standardised(in_single(x), dims, rstd)
        return _scaled(out, weight, bias).to(x.dtype), mean, root

    return (_kept(node, "input"), _kept(node, "weight"), _kept(node, "bias")), normed


def _group_norm(node: Any) -> Any:
    x, weight, groups = _kept(node, "input"), _kept(node, "weight"), node._saved_group
    rstd = _kept(node, "result2").reshape(-1, groups, 1)

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Outputs:
        count, channels, *rest = x.shape
        grouped = in_single(x).reshape(count, groups, -1)
        out, mean, root = _standardised(grouped, (-1,), rstd)
        column = [1, channels, *[1] * len(rest)]
        scaled = _scaled(out.reshape(x.shape), *_columns(column, weight, bias)).to(x.dtype)
        return scaled, mean.squeeze(-1), root.squeeze(-1)

    return (x, weight, _bias(x, weight)), normed


def _batch_norm(node: Any) -> Any:
    x, weight = _kept(node, "input"), _kept(node, "weight")
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    moments = (
        None if node._saved_training else (_kept(node, "running_mean"), _kept(node, "running_var"))
    )

    def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        wide, column = in_single(x), [1, -1, *[1] * (x.dim() - 2)]
        if moments is None:
            dims = (0, *range(2, x.dim()))
            var, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
        else:
            mean, var = [moment.reshape(column) for moment in moments]
        out = (wide - mean) * (var + eps).rsqrt()
        return _scaled(out, *_columns(column, weight, bias)).to(x.dtype)

    return (x, weight, _bias(x, weight)), normed


Outputs = tuple[Tensor, Tensor, Tensor]
"""What is normalized, the mean, and one over the deviation; kernels return all three."""


def _standardised(x: Tensor, dims: tuple[int, ...], rstd: Tensor) -> Outputs:
    """Minus the mean, over the deviation; of what was added to the variance nodes keep the sum."""
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    eps = rstd.detach().reshape(var.shape) ** -2 - var.detach()
    root = (var + eps).rsqrt()
    return (x - mean) * root, mean, root


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _columns(column: list[int], *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.reshape(column) for x in tensors]


def _bias(x: Tensor, weight: Tensor | None) -> Tensor:
    """What stands for a bias, which the node does not keep; no derivative depends on its value."""
    return torch.zeros_like(weight) if weight is not None else in_single(x).new_zeros(x.shape[1])


_RULES: dict[str, gradients.Rule] = {
    **attention_formulas.RULES,
    **{other.node[0]: _by_table(other) for other in OTHERS.values() if other.node},
    "NativeLayerNormBackward0": _layer_norm,
    "NativeGroupNormBackward0": _group_norm,
    "NativeBatchNormBackward0": _batch_norm,
    "CudnnBatchNormBackward0": _batch_norm,
    "MiopenBatchNormBackward0": _batch_norm,
}
"""By the names of the nodes."""
