"""Norms of vectors by operators, as in ``formulas``.

Torch writes into what its forward derivatives of them keep, so that the gradient of a ``jvp`` of
another derivative raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import overrides
from parallax.func.other import AsItIsError, Other

__all__ = ["VECTOR_NORMS"]


def _of_vectors(x: Tensor, p: Any, dim: Any, keepdim: bool, dtype: Any = None) -> Tensor:
    """The norm along some dimensions, or of all numbers; its derivatives at zero are zero."""
    x = x if dtype is None else x.to(dtype)
    known = isinstance(p, (int, float)) and p > 1 and p != torch.inf
    if not known or not x.is_floating_point() or x.numel() == 0:
        raise AsItIsError
    if x.dim() == 0:
        return x.abs()
    given = range(x.dim()) if dim is None else dim
    dims = tuple(given) if isinstance(given, Sequence) else (given,)
    if len(dims) == 0:
        raise AsItIsError
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    most = wide.detach().abs().amax(dims, keepdim=True)
    none = most == 0
    size = torch.where(none | most.isinf(), 1, most)  # so that no power overflows
    parts = torch.where(
        none, 1, wide / size
    )  # no power of zeros, whose derivatives may be infinite
    powers = parts * parts if p == 2 else parts.abs() ** p
    total = powers.sum(dims, keepdim=True)
    root = total.sqrt() if p == 2 else total ** (1 / p)
    found = torch.where(none, 0, root * size).to(x.dtype)
    return found if keepdim else found.squeeze(dims)


def _vector_norm(
    function: Any, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *,  # noqa: A002  # torch's name
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    return _of_vectors(x, ord, dim, keepdim, dtype)


def _matrix_norm(
    function: Any, A: Tensor, ord: Any = "fro", dim: Any = (-2, -1),  # noqa: A002, N803  # torch's
    keepdim: bool = False, *, dtype: Any = None,
) -> Tensor:  # fmt: skip
    if ord != "fro":
        raise AsItIsError
    return _of_vectors(A, 2, dim, keepdim, dtype)


def _linalg_norm(
    function: Any, A: Tensor, ord: Any = None, dim: Any = None,  # noqa: A002, N803  # torch's
    keepdim: bool = False, *, dtype: Any = None,
) -> Tensor:  # fmt: skip
    if ord is None or ord == "fro":
        return _of_vectors(A, 2, dim, keepdim, dtype)
    of_vectors = A.dim() == 1 if dim is None else isinstance(dim, int) or len(dim) == 1
    if not of_vectors:
        raise AsItIsError
    return _of_vectors(A, ord, dim, keepdim, dtype)


def _norm(
    function: Any, x: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False,
    out: Any = None, dtype: Any = None,
) -> Tensor:  # fmt: skip
    if out is not None:
        raise AsItIsError
    return _of_vectors(x, 2 if p in (None, "fro") else p, dim, keepdim, dtype)


def _dist(function: Any, x: Tensor, other: Tensor, p: Any = 2) -> Tensor:
    return _of_vectors(x - other, p, None, False)


def _normalize(
    function: Any, x: Tensor, p: Any = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> Tensor:
    if out is not None:
        raise AsItIsError
    return x / _of_vectors(x, p, dim, True).clamp_min(eps)


def _pairwise_distance(
    function: Any, x1: Tensor, x2: Tensor, p: Any = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    return _of_vectors(x1 - x2 + eps, p, -1, keepdim)


def _cosine_similarity(
    function: Any, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    if x1.dtype != x2.dtype:
        raise AsItIsError
    one, two = torch.broadcast_tensors(x1, x2)
    units = [x / _of_vectors(x, 2, dim, True).clamp_min(eps) for x in (one, two)]
    found: Tensor = (units[0] * units[1]).sum(dim)
    return found


def _triplet_margin_loss(
    function: Any, anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0,
    p: Any = 2, eps: float = 1e-6, swap: bool = False, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    if size_average is not None or reduce is not None or not 1 <= anchor.dim() <= 2:
        raise AsItIsError
    near, far = [_pairwise_distance(None, anchor, x, p, eps) for x in (positive, negative)]
    far = torch.minimum(far, _pairwise_distance(None, positive, negative, p, eps)) if swap else far
    return _hinged(margin, near, far, reduction)


def _distance_loss(
    function: Any, anchor: Tensor, positive: Tensor, negative: Tensor, *,
    distance_function: Any = None, margin: float = 1.0, swap: bool = False,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    distance = F.pairwise_distance if distance_function is None else distance_function
    far = distance(anchor, negative)
    far = torch.minimum(far, distance(positive, negative)) if swap else far
    return _hinged(margin, distance(anchor, positive), far, reduction)


def _hinged(margin: float, near: Tensor, far: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise AsItIsError
    losses = (margin + near - far).clamp_min(0)
    found: Tensor = losses if reduction == "none" else getattr(losses, reduction)()
    return found


def _renorm(function: Any, x: Tensor, p: Any, dim: int, maxnorm: float) -> Tensor:
    dims = [d for d in range(x.dim()) if d != dim % x.dim()]
    size = _of_vectors(x, p, dims, True)
    return x * torch.where(size > maxnorm, maxnorm / (size + 1e-7), 1)


def _std_mean(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    squares, mean = torch.var_mean(x, *args, **kwargs)
    return _root(x, squares, kwargs), mean


def _std(function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _root(x, torch.var(x, *args, **kwargs), kwargs)


def _root(x: Tensor, squares: Tensor, kwargs: dict[str, Any]) -> Tensor:
    if not x.is_floating_point() or kwargs.get("out") is not None:
        raise AsItIsError
    none = squares == 0
    return torch.where(none, 0, torch.where(none, 1, squares).sqrt())


def _table() -> dict[Any, Other]:
    linalg, named = torch.linalg, overrides.functions_named
    options = frozenset({"ord", "dim", "keepdim", "dtype"})
    triplet = ("anchor", "positive", "negative")
    norm = Other(_norm, ("input",), frozenset({"p", "dim", "keepdim", "out", "dtype"}))
    more = frozenset({"dim", "unbiased", "correction", "keepdim"})
    return {
        linalg.vector_norm: Other(_vector_norm, "x", options),
        linalg.matrix_norm: Other(_matrix_norm, "A", options),
        linalg.norm: Other(_linalg_norm, "A", options),
        **dict.fromkeys(named("norm"), norm),
        **dict.fromkeys(named("dist"), Other(_dist, ("input", "other"), frozenset({"p"}))),
        **dict.fromkeys(named("std"), Other(_std, ("input",), more)),
        **dict.fromkeys(named("std_mean"), Other(_std_mean, ("input",), more)),
        **dict.fromkeys(named("renorm"), Other(_renorm, ("input", "p", "dim", "maxnorm"))),
        F.normalize: Other(_normalize, ("input",), frozenset({"p", "dim", "eps", "out"})),
        F.pairwise_distance: Other(
            _pairwise_distance, ("x1", "x2"), frozenset({"p", "eps", "keepdim"})
        ),
        F.cosine_similarity: Other(_cosine_similarity, ("x1", "x2"), frozenset({"dim", "eps"})),
        F.triplet_margin_loss: Other(
            _triplet_margin_loss,
            triplet,
            frozenset({"margin", "p", "eps", "swap", "size_average", "reduce", "reduction"}),
        ),
        F.triplet_margin_with_distance_loss: Other(
            _distance_loss,
            triplet,
            frozenset({"distance_function", "margin", "swap", "reduction"}),
            within=True,
        ),
    }


VECTOR_NORMS = _table()
"""What is computed in place of which norm, and of what torch makes of norms."""
