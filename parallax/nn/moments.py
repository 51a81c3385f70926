"""Normalisation by mean and variance, in operators that have every derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from parallax._compat.gradients import WhereRecorded
from parallax.nn.precision import widened

__all__ = ["channels_watched", "normalised", "root_mean_divided", "trailing_watched"]


def normalised(
    input: Tensor, dims: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernels of layer and batch norm compute, with derivatives of every order.

    Args:
        input: what is normalised.
        dims: the dimensions that are normalised together.
        weight: is multiplied with the result, and broadcasts with it.
        bias: is added, likewise.
        eps: is added to the variance.

    Returns:
        The output in the dtype of the input; mean and variance in the dtype that the kernels
        compute in, with dimensions of one number for ``dims``.
    """
    wide = widened(input)
    var, mean = torch.var_mean(wide, dims, correction=0, keepdim=True)
    out = (wide - mean) * (var + eps).rsqrt()
    if weight is not None:
        out = out * weight
    if bias is not None:
        out = out + bias
    return out.to(input.dtype), mean, var


def root_mean_divided(input: Tensor, dims: tuple[int, ...], eps: float | None) -> Tensor:
    """The input divided by the root of its mean square, as ``torch.rms_norm`` without a weight."""
    wide = widened(input)
    least = torch.finfo(wide.dtype).eps if eps is None else eps
    return (wide * (wide.square().mean(dims, keepdim=True) + least).rsqrt()).to(input.dtype)


@lru_cache
def trailing_watched(eps: float) -> Callable[[Tensor], Tensor]:
    """What is called with the output of ``torch.layer_norm`` in plain eager code."""

    def rule(node: Any) -> Any:
        dims = (*range(-len(node._saved_normalized_shape), 0),)

        def again(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
            return normalised(input, dims, weight, bias, eps)[0]

        return (node._saved_input, node._saved_weight, node._saved_bias), again

    return WhereRecorded({"NativeLayerNormBackward0": rule}).watch


def _rule_of_channels(node: Any) -> Any:
    weight = node._saved_weight
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps

    def again(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        shape = [1, -1, *[1] * (input.dim() - 2)]
        weight, bias = [None if x is None else x.view(shape) for x in (weight, bias)]
        return normalised(input, (0, *range(2, input.dim())), weight, bias, eps)[0]

    # The node keeps no bias, of which there is one only beside a weight.
    bias = None if weight is None else torch.zeros_like(weight)
    return (node._saved_input, weight, bias), again


channels_watched: Callable[[Tensor], Tensor] = WhereRecorded(
    dict.fromkeys(
        ["NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0"],
        _rule_of_channels,
    )
).watch
"""What is called with the output of a norm by the batch's moments in plain eager code."""
