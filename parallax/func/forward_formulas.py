"""Functions of torch by operators of which torch has the derivatives of every order.

Each takes the function of torch that it stands for, and its arguments. It raises ``AsItIsError``
where that one is to be called, and its values are the same but for rounding.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from parallax._compat import functorch, overrides
from parallax.func.attention_formulas import by_operators
from parallax.func.forward_losses import LOSSES
from parallax.func.forward_norms import VECTOR_NORMS
from parallax.func.jet_composed import COMPOSED, NORMS
from parallax.func.jets import Expansion, Rule
from parallax.func.other import AsItIsError, Other

__all__ = ["OTHERS"]

_TYPES: Any = torch.return_types

_NOTHING = Expansion({}, 0)
"""Of no order: its rules compute the value."""


# -- matrices -----------------------------------------------------------------------------------


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


# -- products and sinc, at zero -----------------------------------------------------------------


def _prod(
    function: Any, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    x = _factors(function, x, dim, dtype)
    if dim is None:
        if keepdim:
            raise AsItIsError
        return _prod(function, x.reshape(-1), 0)
    found: Tensor = _single(x).movedim(dim, -1)
    while found.shape[-1] > 1:
        half = found.shape[-1] // 2
        pairs = found[..., :half] * found[..., half : 2 * half]
        found = torch.cat([pairs, found[..., 2 * half :]], -1)
    found = found.movedim(-1, dim).to(x.dtype)
    return found if keepdim else found.squeeze(dim)


def _cumprod(function: Any, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    x = _factors(function, x, dim, dtype)
    found: Tensor = _single(x).movedim(dim, -1)
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


def _sinc(function: Any, x: Tensor) -> Tensor:
    found: Tensor = COMPOSED["sinc"](_NOTHING, function, x)
    return found


def _mish(function: Any, x: Tensor, **options: Any) -> Tensor:
    found: Tensor = COMPOSED["mish"](_NOTHING, function, x, **options)
    return found


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


# -- norms --------------------------------------------------------------------------------------


def _layer_norm(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _in_single(NORMS[F.layer_norm], function, x, args, kwargs)


def _group_norm(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _in_single(NORMS[F.group_norm], function, x, args, kwargs)


def _with_statistics(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def by_operators(
        function: Any, x: Tensor, running_mean: Tensor | None = None,
        running_var: Tensor | None = None, *args: Any, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        given = [running_mean, running_var]
        copies = [_single(stat) for stat in given]
        if any([copy is not stat for copy, stat in zip(copies, given, strict=True)]):
            # In a transform nothing but the kernel may write into what the function captures.
            norm(x.detach(), *given, *args[:5], **kwargs)
        return _in_single(NORMS[norm], function, x, [*copies, *args], kwargs)

    return by_operators


def _in_other_order(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def positional(
        function: Any, x: Tensor, weight: Any, bias: Any, running_mean: Any, running_var: Any,
        *options: Any,
    ) -> Tensor:  # fmt: skip
        return norm(function, x, running_mean, running_var, weight, bias, *options)

    return positional


def _in_single(
    rule: Rule, function: Any, x: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
) -> Tensor:
    """By a rule, in single precision where a kernel computes half precision so."""
    options = {name: _single(value) for name, value in kwargs.items()}
    found: Tensor = rule(_NOTHING, function, _single(x), *map(_single, args), **options)
    return found.to(x.dtype)


def _single(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


# -- attention ----------------------------------------------------------------------------------


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


# -- which are for which ------------------------------------------------------------------------


def _table() -> dict[Any, Other]:
    linalg, named = torch.linalg, overrides.functions_named
    norm = frozenset({"weight", "bias", "running_mean", "running_var", "use_input_stats",
                      "training", "momentum", "eps", "cudnn_enable"})  # fmt: skip
    stats = ("input", "weight", "bias", "running_mean", "running_var")
    last = ("momentum", "eps", "cudnn_enabled")
    layer = Other(_layer_norm, ("input", "normalized_shape"), norm)
    group = Other(_group_norm, ("input", "num_groups"), norm)
    batch, instance = _with_statistics(F.batch_norm), _with_statistics(F.instance_norm)
    behind = ((3, "running_mean"), (4, "running_var"))
    seen = ((1, "running_mean"), (2, "running_var"))
    return {
        **LOSSES,
        **VECTOR_NORMS,
        linalg.solve: Other(_solve, "AB", frozenset({"left"})),
        linalg.solve_ex: Other(_solve_ex, "AB", frozenset({"left", "check_errors"})),
        linalg.tensorsolve: Other(_tensorsolve, "AB", frozenset({"dims"})),
        linalg.det: Other(_det, "A", always=True),
        linalg.slogdet: Other(_slogdet, "A"),
        linalg.householder_product: Other(_householder_product, ("A", "tau")),
        torch.triangular_solve: Other(_triangular_solve, "bA", frozenset(_TRIANGULAR), always=True),
        Tensor.triangular_solve: Other(
            _triangular_solve, ("", "A"), frozenset(_TRIANGULAR), always=True
        ),
        **dict.fromkeys(named("det"), Other(_det, ("input",), always=True)),
        **dict.fromkeys(named("slogdet"), Other(_slogdet, ("input",))),
        **dict.fromkeys(named("logdet"), Other(_logdet, ("input",))),
        **dict.fromkeys(
            named("prod"), Other(_prod, ("input",), frozenset({"dim", "keepdim", "dtype"}))
        ),
        **dict.fromkeys(named("cumprod"), Other(_cumprod, ("input", "dim"), frozenset({"dtype"}))),
        **dict.fromkeys(named("sinc"), Other(_sinc, ("input",), always=True)),
        **dict.fromkeys(named("mish"), Other(_mish, ("input",), frozenset({"inplace"}))),
        linalg.vander: Other(_vander, "x", frozenset({"N"})),
        torch.vander: Other(_vander, "x", frozenset({"N", "increasing"})),
        **dict.fromkeys(named("orgqr"), Other(_householder_product, ("input", "tau"))),
        **dict.fromkeys(
            named("cholesky_inverse"),
            Other(_cholesky_inverse, ("L",), frozenset({"upper"}), always=True),
        ),
        F.scaled_dot_product_attention: Other(
            _attention,
            ("query", "key", "value"),
            frozenset({"attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"}),
            always=True,
        ),
        F.multi_head_attention_forward: Other(
            _attention_layer,
            [x.name for x in _LAYER if x.default is x.empty],
            frozenset([x.name for x in _LAYER if x.default is not x.empty]),
            always=True,
        ),
        F.layer_norm: layer,
        F.group_norm: group,
        torch.group_norm: group,
        torch.layer_norm: layer,
        F.batch_norm: Other(batch, ("input", "running_mean", "running_var"), norm, constants=seen),
        F.instance_norm: Other(instance, ("input",), norm, constants=seen),
        torch.batch_norm: Other(
            _in_other_order(batch), (*stats, "training", *last), constants=behind
        ),
        torch.instance_norm: Other(
            _in_other_order(instance), (*stats, "use_input_stats", *last), constants=behind
        ),
    }


_TRIANGULAR = ("upper", "transpose", "unitriangular")

OTHERS = _table()
"""What is computed in place of which function."""
