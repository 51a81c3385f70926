"""Taylor rules of functions that are computed by others: softmax, norms, variances, sinc."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from parallax.func.jets import Expansion, Rule

__all__ = ["COMPOSED", "NORMS"]


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


def _logcumsumexp(expansion: Expansion, function: Any, x: Any, dim: Any) -> Any:
    """Of each sum a row, from which later entries are left out."""
    row = x.movedim(dim, -1)
    count = row.shape[-1]
    later = torch.ones(count, count, dtype=torch.bool, device=x.device).triu(1)
    # A sum of nothing but exp(-inf) is constant, as torch has it; its logarithm has no slope.
    none = (expansion.value(row) == -math.inf).cumprod(-1).bool()
    rows = torch.where(later, -math.inf, row.unsqueeze(-2))
    sums = torch.logsumexp(torch.where(none.unsqueeze(-1), 0, rows), -1)
    return torch.where(none, -math.inf, sums).movedim(-1, dim)


def _logsumexp(expansion: Expansion, function: Any, x: Any, dim: Any, keepdim: bool = False) -> Any:
    most = expansion.value(x).amax(dim, keepdim=True)
    most = torch.where(most.isinf(), 0, most)
    total = torch.log(torch.exp(x - most).sum(dim, keepdim=True)) + most
    return total if keepdim else total.squeeze(dim)


def _refuse_low(expansion: Expansion, function: Any, x: Any) -> None:
    """Kernels compute means and squares of half precision in single precision; no jet does."""
    if x.dtype in (torch.float16, torch.bfloat16):
        raise expansion.refuse(function)


def _standardised(x: Any, dims: Sequence[int], eps: float) -> Any:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + eps)


def _scaled(x: Any, weight: Any, bias: Any) -> Any:
    scaled = x if weight is None else x * weight
    scaled = scaled if bias is None else scaled + bias
    return scaled if scaled.dtype is x.dtype else scaled.to(x.dtype)


def _layer_norm(
    expansion: Expansion, function: Any, x: Any, normalized_shape: Any, weight: Any = None,
    bias: Any = None, eps: float = 1e-5, cudnn: Any = None,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    dims = list(range(-len(normalized_shape), 0))
    if tuple(x.shape[dims[0] :]) != tuple(normalized_shape):
        raise expansion.refuse(function)
    return _scaled(_standardised(x, dims, eps), weight, bias)


def _rms_norm(
    expansion: Expansion, function: Any, x: Any, normalized_shape: Any, weight: Any = None,
    eps: Any = None,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    dims = list(range(-len(normalized_shape), 0))
    if eps is None or tuple(x.shape[dims[0] :]) != tuple(normalized_shape):
        raise expansion.refuse(function)
    return _scaled(x * torch.rsqrt((x * x).mean(dims, keepdim=True) + eps), weight, None)


def _group_norm(
    expansion: Expansion, function: Any, x: Any, num_groups: int, weight: Any = None,
    bias: Any = None, eps: float = 1e-5, cudnn: Any = None,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    count, channels, *rest = x.shape
    grouped = x.reshape(count, num_groups, -1)
    flat = _standardised(grouped, [-1], eps).reshape(count, channels, *rest)
    return _affine(flat, weight, bias, (1, channels, *[1] * len(rest)))


def _batch_norm(
    expansion: Expansion, function: Any, x: Any, running_mean: Any, running_var: Any,
    weight: Any = None, bias: Any = None, training: bool = False, momentum: Any = 0.1,
    eps: float = 1e-5, cudnn: Any = None,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    column = (1, -1, *[1] * (x.dim() - 2))
    if not training:
        scale = torch.rsqrt(running_var + eps).reshape(column)
        return _affine((x - running_mean.reshape(column)) * scale, weight, bias, column)
    dims = [0, *range(2, x.dim())]
    _update(expansion, function, x, running_mean, running_var, momentum, dims)
    return _affine(_standardised(x, dims, eps), weight, bias, column)


def _instance_norm(
    expansion: Expansion, function: Any, x: Any, running_mean: Any = None, running_var: Any = None,
    weight: Any = None, bias: Any = None, use_input_stats: bool = True, momentum: Any = 0.1,
    eps: float = 1e-5, cudnn: Any = None,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    if not use_input_stats:
        raise expansion.refuse(function)
    dims = list(range(2, x.dim()))
    _update(expansion, function, x, running_mean, running_var, momentum, dims)
    return _affine(_standardised(x, dims, eps), weight, bias, (1, -1, *[1] * len(dims)))


def _in_other_order(rule: Rule) -> Rule:
    def positional(expansion: Expansion, function: Any, *given: Any) -> Any:
        x, weight, bias, running_mean, running_var, *options = given
        return rule(expansion, function, x, running_mean, running_var, weight, bias, *options)

    return positional


def _update(
    expansion: Expansion, function: Any, x: Any, running_mean: Any, running_var: Any,
    momentum: Any, dims: Sequence[int],
) -> Any:  # fmt: skip
    """What the function does to running statistics, where that is no attempt that may end."""
    if _count(x, dims) == 1:  # torch refuses one number
        raise expansion.refuse(function)
    if running_mean is not None or running_var is not None:
        if expansion.order:
            raise expansion.refuse(function)
        options = None, None, running_mean, running_var, True, momentum, 1.0, False
        kernel = torch.batch_norm if dims[0] == 0 else torch.instance_norm
        kernel(x.detach(), *options)


def _count(x: Any, dims: Sequence[int]) -> int:
    return math.prod([x.shape[d] for d in dims])


def _affine(x: Any, weight: Any, bias: Any, column: Sequence[int]) -> Any:
    """Scaled and shifted channel by channel."""
    weight = None if weight is None else weight.reshape(column)
    return _scaled(x, weight, None if bias is None else bias.reshape(column))


def _sinc(expansion: Expansion, function: Any, x: Any) -> Any:
    """By its power series around zero, where torch knows the first derivative only."""
    if not x.is_floating_point():
        raise expansion.refuse(function)
    y = math.pi * (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)
    near = expansion.value(y).abs() < 1
    square = torch.where(near, y * y, 0)
    series = 1 - square / (2 * _TERMS * (2 * _TERMS + 1))
    for k in range(_TERMS - 1, 0, -1):
        series = 1 - square / (2 * k * (2 * k + 1)) * series
    far = torch.where(near, 1, y)
    return torch.where(near, series, far.sin() / far).to(x.dtype)


def _mish(expansion: Expansion, function: Any, x: Any, inplace: bool = False) -> Any:
    """Of torch's own the second derivative overflows from 89 on, in half precision from 12 on."""
    if inplace or not x.is_floating_point():
        raise expansion.refuse(function)
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return (wide * F.softplus(wide).tanh()).to(x.dtype)


_TERMS = 11
"""Of the series of sinc; the first that is left out is less than 1e-25."""


def _variance(
    expansion: Expansion, function: Any, x: Any, dim: Any = None, *, correction: Any = 1,
    keepdim: bool = False,
) -> Any:  # fmt: skip
    _refuse_low(expansion, function, x)
    if isinstance(dim, bool) or x.is_complex():
        raise expansion.refuse(function)
    dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    count = _count(x, dims)
    if count <= correction:
        raise expansion.refuse(function)
    centred = x - x.mean(dims, keepdim=True)
    return (centred * centred).sum(dims, keepdim=keepdim) / (count - correction)


def _deviation(expansion: Expansion, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return torch.sqrt(_variance(expansion, function, x, *args, **kwargs))


COMPOSED: dict[str, Rule] = {
    "log_softmax": _log_softmax,
    "logcumsumexp": _logcumsumexp,
    "logsumexp": _logsumexp,
    "mish": _mish,
    "rms_norm": _rms_norm,
    "sinc": _sinc,
    "softmax": _softmax,
    "std": _deviation,
    "var": _variance,
}
"""The rules by the names of the functions."""

NORMS: dict[Any, Rule] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: _in_other_order(_batch_norm),
    torch.instance_norm: _in_other_order(_instance_norm),
    **dict.fromkeys([F.group_norm, torch.group_norm], _group_norm),
    **dict.fromkeys([F.layer_norm, torch.layer_norm], _layer_norm),
}
"""Those of norms, by the functions. Of torch's kernels the third derivatives are wrong."""
