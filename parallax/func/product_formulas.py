"""Products and sums of many entries by operators, as in ``formulas``.

Of products torch divides by the factors, so that derivatives are wrong where one is zero. The third
derivatives of ``logcumsumexp`` are nan.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax._compat import overrides
from parallax.func.jet_composed import COMPOSED
from parallax.func.jets import NOTHING
from parallax.func.other import AsItIsError, Other, in_single

__all__ = ["PRODUCTS"]


def _prod(
    function: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    x = _factors(function, x, dim, dtype)
    if dim is None:
        if keepdim:
            raise AsItIsError
        return _prod(function, x.reshape(-1), 0)
    found: Tensor = in_single(x).movedim(dim, -1)
    while found.shape[-1] > 1:
        half = found.shape[-1] // 2
        pairs = found[..., :half] * found[..., half : 2 * half]
        found = torch.cat([pairs, found[..., 2 * half :]], -1)
    found = found.movedim(-1, dim).to(x.dtype)
    return found if keepdim else found.squeeze(dim)


def _cumprod(function: Any, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    x = _factors(function, x, dim, dtype)
    found: Tensor = in_single(x).movedim(dim, -1)
    step = 1
    while step < found.shape[-1]:
        later = found[..., step:] * found[..., :-step]
        found = torch.cat([found[..., :step], later], -1)
        step *= 2
    return found.movedim(-1, dim).to(x.dtype)


def _factors(function: Any, x: Tensor, dim: Any, dtype: Any) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    named = dim is not None and type(dim) is not int
    if named or x.dim() == 0 or x.numel() == 0 or not x.is_floating_point():
        raise AsItIsError
    return x


def _vander(
    function: Any,
    x: Tensor,
    N: int | None = None,  # noqa: N803  # torch's name
    increasing: bool | None = None,
) -> Tensor:
    """Each row by repeated products, as torch has it, whose derivatives at zero are wrong."""
    count = x.shape[-1] if N is None else N
    if not x.is_floating_point() or count < 2 or (function is torch.vander and x.dim() != 1):
        raise AsItIsError
    factors = x.unsqueeze(-1).expand(*x.shape, count - 1)
    found = torch.cat([torch.ones_like(x).unsqueeze(-1), _cumprod(function, factors, -1)], -1)
    rising = function is torch.linalg.vander if increasing is None else increasing
    return found if rising else found.flip(-1)


def _logcumsumexp(function: Any, x: Tensor, dim: int, *, out: Any = None) -> Tensor:
    if out is not None or not x.is_floating_point():
        raise AsItIsError
    if x.dim() == 0:
        return x.clone()
    found: Tensor = COMPOSED["logcumsumexp"](NOTHING, function, in_single(x), dim)
    return found.to(x.dtype)


def _table() -> dict[Any, Other]:
    named = overrides.functions_named
    prod = Other(_prod, ("input",), frozenset({"dim", "keepdim", "dtype"}))
    sums = Other(
        _logcumsumexp, ("input", "dim"), frozenset({"out"}), forward=3, reverse=3,
        node=("LogcumsumexpBackward0", "dim"),
    )  # fmt: skip
    return {
        **dict.fromkeys(named("prod"), prod),
        **dict.fromkeys(named("cumprod"), Other(_cumprod, ("input", "dim"), frozenset({"dtype"}))),
        **dict.fromkeys(named("logcumsumexp"), sums),
        torch.linalg.vander: Other(_vander, "x", frozenset({"N"})),
        torch.vander: Other(_vander, "x", frozenset({"N", "increasing"})),
    }


PRODUCTS = _table()
"""What is computed in place of which function."""
