"""Solutions and determinants of matrices by operators, as in ``formulas``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import overrides
from parallax.func.other import AsItIsError, Other

__all__ = ["MATRICES"]

_TYPES: Any = torch.return_types


def _solve(function: Any, a: Tensor, b: Tensor, *, left: bool = True) -> Tensor:
    vectors = b.dim() == 1 or (a.dim() - 1 == b.dim() and b.shape == a.shape[:-1])
    try:
        factors, pivots = torch.linalg.lu_factor(a)
    except RuntimeError as error:
        if "lu_factor" not in str(error):
            raise
        raise AsItIsError from None  # of a singular matrix its own error tells
    columns = b.unsqueeze(-1) if vectors else b
    found: Tensor = torch.linalg.lu_solve(factors, pivots, columns, left=left)
    return found.squeeze(-1) if vectors else found


def _solve_ex(
    function: Any, a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False
) -> Any:
    info = function(a.detach(), b.detach(), left=left, check_errors=check_errors)[1]
    return _TYPES.linalg_solve_ex((_solve(function, a, b, left=left), info))


def _tensorsolve(function: Any, a: Tensor, b: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    if dims is not None:
        a = a.movedim(tuple(dims), tuple(range(a.dim() - len(dims), a.dim())))
    shape = a.shape[b.dim() :]
    return _solve(function, a.reshape(b.numel(), -1), b.reshape(-1)).reshape(shape)


def _triangular_solve(
    function: Any, b: Tensor, a: Tensor, upper: bool = True, transpose: bool = False,
    unitriangular: bool = False,
) -> Any:  # fmt: skip
    factor = a.mT if transpose else a
    found = torch.linalg.solve_triangular(
        factor, b, upper=upper is not transpose, unitriangular=unitriangular
    )
    return _TYPES.triangular_solve((found, a.clone()))


def _pivots(function: Any, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sign of the order of the rows, the pivots, and whether one is zero.

    A zero is moved a little, so that derivatives are finite.
    """
    if a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise AsItIsError
    factors, rows, _ = torch.linalg.lu_factor_ex(a.detach())
    sizes, eps = factors.diagonal(dim1=-2, dim2=-1).abs(), torch.finfo(a.dtype).eps
    most = sizes.amax(-1, keepdim=True)
    zero = sizes <= eps * sizes.shape[-1] * most
    moves = torch.where(zero, eps**0.5 * torch.where(most == 0, 1, most), 0)
    order: Tensor = torch.lu_unpack(factors, rows, unpack_data=False)[0]
    factors, rows, _ = torch.linalg.lu_factor_ex(a + order * moves.unsqueeze(-2))
    swaps = (rows != torch.arange(1, rows.shape[-1] + 1, device=rows.device)).sum(-1)
    return 1 - 2 * (swaps % 2), factors.diagonal(dim1=-2, dim2=-1), zero.any(-1)


def _det(function: Any, a: Tensor) -> Tensor:
    sign, pivots, zero = _pivots(function, a)
    found = sign * pivots.prod(-1)
    return torch.where(zero, found - found.detach(), found)


def _slogdet(function: Any, a: Tensor) -> Any:
    order, pivots, zero = _pivots(function, a)
    sign, size = order * pivots.sgn().prod(-1), pivots.abs().log().sum(-1)
    found = torch.where(zero, sign - sign, sign), torch.where(zero, size - math.inf, size)
    kind = _TYPES.linalg_slogdet if function is torch.linalg.slogdet else _TYPES.slogdet
    return kind(found)


def _logdet(function: Any, a: Tensor) -> Tensor:
    sign, size = _slogdet(function, a)
    real = torch.where(sign < 0, math.nan, size) if not a.is_complex() else size
    found: Tensor = sign.log() + size if a.is_complex() else real
    return found


def _cholesky_inverse(function: Any, factor: Tensor, upper: bool = False) -> Tensor:
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.cholesky_solve(eye, factor, upper)


def _householder_product(function: Any, a: Tensor, tau: Tensor) -> Tensor:
    """The first columns of a product of reflections, each of which is ``1 - tau v v*``."""
    rows = torch.arange(a.shape[-2], device=a.device)
    found = torch.eye(*a.shape[-2:], dtype=a.dtype, device=a.device)
    for k in range(tau.shape[-1] - 1, -1, -1):
        v = torch.where(rows > k, a[..., k], (rows == k).to(a.dtype)).unsqueeze(-1)
        found = found - tau[..., k, None, None] * v * (v.mH @ found)
    return found


_TRIANGULAR = frozenset({"upper", "transpose", "unitriangular"})


def _table() -> dict[Any, Other]:
    linalg, named = torch.linalg, overrides.functions_named
    return {
        linalg.solve: Other(_solve, "AB", frozenset({"left"})),
        linalg.solve_ex: Other(_solve_ex, "AB", frozenset({"left", "check_errors"})),
        linalg.tensorsolve: Other(_tensorsolve, "AB", frozenset({"dims"})),
        linalg.det: Other(_det, "A", forward=1),
        linalg.slogdet: Other(_slogdet, "A"),
        linalg.householder_product: Other(_householder_product, ("A", "tau")),
        torch.triangular_solve: Other(_triangular_solve, "bA", _TRIANGULAR, forward=1),
        Tensor.triangular_solve: Other(_triangular_solve, ("", "A"), _TRIANGULAR, forward=1),
        **dict.fromkeys(named("det"), Other(_det, ("input",), forward=1)),
        **dict.fromkeys(named("slogdet"), Other(_slogdet, ("input",))),
        **dict.fromkeys(named("logdet"), Other(_logdet, ("input",))),
        **dict.fromkeys(named("orgqr"), Other(_householder_product, ("input", "tau"))),
        **dict.fromkeys(
            named("cholesky_inverse"),
            Other(_cholesky_inverse, ("L",), frozenset({"upper"}), forward=1),
        ),
    }


MATRICES = _table()
"""What is computed in place of which function."""
