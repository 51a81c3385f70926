"""Taylor rules of functions that are computed by others: softmax, norms, variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from parallax.func.jets import Expansion, Rule

__all__ = ["COMPOSED"]


def _softmax(
    expansion: Expansion, function: Any, x: Any, dim: Any, _stacklevel: int = 3, dtype: Any = None
) -> Any:  # fmt: skip
    if dtype is not None:
        raise expansion.refuse(function)
    powers = torch.exp(x - expansion.value(x).amax(dim, keepdim=True))
    return powers / powers.sum(dim, keepdim=True)


def _log_softmax(
    expansion: Expansion, function: Any, x: Any, dim: Any, _stacklevel: int = 3, dtype: Any = None
) -> Any:  # fmt: skip
    if dtype is not None:
        raise expansion.refuse(function)
    return x - torch.logsumexp(x, dim, keepdim=True)


def _logsumexp(expansion: Expansion, function: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    most = expansion.value(x).amax(dim, keepdim=True)
    most = torch.where(most.isinf(), 0, most)
    total = torch.log(torch.exp(x - most).sum(dim, keepdim=True)) + most
    return total if keepdim else total.squeeze(dim)


def _standardised(x: Any, dims: Sequence[int], eps: float) -> Any:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    expansion: Expansion, function: Any, x: Any, normalized_shape: Any, weight: Any = None,
    bias: Any = None, eps: float = 1e-5,
) -> Any:  # fmt: skip
    dims = list(range(-len(normalized_shape), 0))
    if tuple(x.shape[dims[0] :]) != tuple(normalized_shape):
        raise expansion.refuse(function)
    return _scaled(_standardised(x, dims, eps), weight, bias)


def _rms_norm(
    expansion: Expansion, function: Any, x: Any, normalized_shape: Any, weight: Any = None,
    eps: Any = None,
) -> Any:  # fmt: skip
    dims = list(range(-len(normalized_shape), 0))
    if eps is None or tuple(x.shape[dims[0] :]) != tuple(normalized_shape):
        raise expansion.refuse(function)
    return _scaled(x * torch.rsqrt((x * x).mean(dims, keepdim=True) + eps), weight, None)


def _group_norm(
    expansion: Expansion, function: Any, x: Any, num_groups: int, weight: Any = None,
    bias: Any = None, eps: float = 1e-5,
) -> Any:  # fmt: skip
    count, channels, *rest = x.shape
    grouped = x.reshape(count, num_groups, -1)
    flat = _standardised(grouped, [-1], eps).reshape(count, channels, *rest)
    column = (1, channels, *[1] * len(rest))
    weight = None if weight is None else weight.reshape(column)
    return _scaled(flat, weight, None if bias is None else bias.reshape(column))


def _variance(
    expansion: Expansion, function: Any, x: Any, dim: Any = None, *, correction: Any = 1,
    keepdim: bool = False,
) -> Any:  # fmt: skip
    if isinstance(dim, bool):
        raise expansion.refuse(function)
    dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    count = math.prod([x.shape[d] for d in dims])
    if count <= correction:
        raise expansion.refuse(function)
    centred = x - x.mean(dims, keepdim=True)
    return (centred * centred).sum(dims, keepdim=keepdim) / (count - correction)


def _deviation(expansion: Expansion, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.sqrt(_variance(expansion, function, x, *args, **kwargs))


COMPOSED: dict[str, Rule] = {
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "std": _deviation,
    "var": _variance,
}
"""The rules by the names of the functions."""
