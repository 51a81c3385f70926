"""The Taylor rules of torch's functions, by the functions themselves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import overrides
from parallax.func.jet_composed import COMPOSED, NORMS
from parallax.func.jet_elementwise import (
    ANY,
    KNOWN,
    by_differentiation,
    composed,
    elementwise,
    power,
)  # fmt: skip
from parallax.func.jets import Expansion, Rule, Term, plain

__all__ = ["RULES"]


# -- what has no derivative ---------------------------------------------------------------------

_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_meta", "is_cpu",
               "is_sparse", "is_nested", "is_quantized", "is_mkldnn", "itemsize")  # fmt: skip

_CONSTANT = (
    "__eq__", "__ge__", "__gt__", "__le__", "__len__", "__lt__", "__ne__", "argmax", "argmin",
    "argsort", "ceil", "dim", "element_size", "empty_like", "eq", "equal", "floor", "full_like",
    "ge", "get_device", "greater", "greater_equal", "gt", "is_complex", "is_distributed",
    "is_floating_point", "is_inference", "is_same_size", "is_signed", "isfinite", "isinf", "isnan",
    "isneginf", "isposinf", "le", "less", "less_equal", "logical_and", "logical_not", "logical_or",
    "logical_xor", "lt", "ndimension", "ne", "nelement", "new_empty", "new_full", "new_ones",
    "new_zeros", "not_equal", "numel", "ones_like", "result_type", "round",
    "searchsorted", "sign", "signbit", "size", "trunc", "zeros_like",
)  # fmt: skip


def _constant(expansion: Expansion, function: Any, *args: Any, **kwargs: Any) -> Any:
    if kwargs.get("out") is not None:
        raise expansion.refuse(function)
    options = zip(kwargs, plain(expansion, list(kwargs.values())), strict=True)
    return function(*plain(expansion, args), **dict(options))


# -- linear functions ---------------------------------------------------------------------------

_LINEAR = (
    "__getitem__", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "broadcast_to", "chunk", "clone", "contiguous",
    "cumsum", "diag", "diag_embed", "diagonal", "dsplit", "expand", "expand_as", "flatten", "flip",
    "fliplr", "flipud", "fold", "gather", "hsplit", "index_select", "mean", "moveaxis", "movedim",
    "narrow", "neg", "negative", "permute", "pixel_shuffle", "pixel_unshuffle", "positive", "ravel",
    "repeat", "repeat_interleave", "reshape", "reshape_as", "roll", "rot90", "select", "split",
    "squeeze", "sum", "swapaxes", "swapdims", "t", "take_along_dim", "tensor_split", "tile",
    "trace", "transpose", "tril", "triu", "type_as", "unbind", "unflatten", "unfold", "unsqueeze",
    "vsplit",
)  # fmt: skip
"""Functions that are linear in their first argument."""


def _linear(expansion: Expansion, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    options = [*args, *kwargs.values()]
    if kwargs.get("out") is not None or not expansion.has(x) or _jets_among(expansion, options):
        raise expansion.refuse(function)
    args = tuple(plain(expansion, args))
    return expansion.linear(x, lambda x: function(x, *args, **kwargs))


def _jets_among(expansion: Expansion, options: Sequence[Any]) -> bool:
    """Whether one is a jet; ``expand_as`` and its like read no more than its shape."""
    return any([expansion.has(option) for option in options])


def _shaped_as(
    expansion: Expansion, function: Any, x: Any, other: Any, **kwargs: Any
) -> Any:  # fmt: skip
    """``expand_as`` and its like, which read no more of the other tensor than its shape."""
    if not expansion.has(x):
        return function(x, expansion.value(other), **kwargs)
    return _linear(expansion, function, x, expansion.value(other), **kwargs)


def _view(expansion: Expansion, function: Any, x: Any, *shape: Any) -> Any:
    """Of derivatives, which may lie elsewhere in memory, it may be a copy."""
    if not expansion.has(x) or any([isinstance(size, torch.dtype) for size in shape]):
        raise expansion.refuse(function)
    value = function(x.value, *shape)
    return expansion.jet(value, x.reshape(value.shape).terms)


def _attribute(expansion: Expansion, function: Any, x: Any, *args: Any) -> Any:
    """``x.T`` and its like."""
    return expansion.linear(x, lambda x: function(x, *args))


def _cast(expansion: Expansion, function: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """``to`` and its like: a tensor that becomes one of integers is constant."""
    if not expansion.has(x):
        raise expansion.refuse(function)
    args = tuple(plain(expansion, args))
    value = function(expansion.value(x), *args, **kwargs)
    if not (value.is_floating_point() or value.is_complex()):
        return value
    return expansion.linear(x, lambda x: function(x, *args, **kwargs))


def _in_list(
    expansion: Expansion, function: Any, tensors: Any, *args: Any, **kwargs: Any
) -> Any:  # fmt: skip
    """``cat``, ``stack`` and their like."""
    if kwargs.get("out") is not None or _jets_among(expansion, [*args, *kwargs.values()]):
        raise expansion.refuse(function)
    return expansion.jointly(list(tensors), lambda *rows: function(list(rows), *args, **kwargs))


def _where(
    expansion: Expansion, function: Any, condition: Any, *args: Any, **kwargs: Any
) -> Any:  # fmt: skip
    if function is Tensor.where:  # x.where(condition, other)
        condition, args = args[0], (condition, *args[1:])
    if kwargs or len(args) != 2:
        raise expansion.refuse(function)
    condition = expansion.value(condition)
    like = next(arg for arg in args if expansion.has(arg))
    pair = [_tensor(arg, like) for arg in args]
    return expansion.jointly(pair, lambda a, b: torch.where(condition, a, b))


def _tensor(value: Any, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _masked_fill(
    expansion: Expansion, function: Any, x: Any, mask: Any, value: Any
) -> Any:  # fmt: skip
    if expansion.has(value) or isinstance(value, Tensor) or not expansion.has(x):
        raise expansion.refuse(function)
    filled = function(expansion.value(x), mask, value)
    if filled.shape != x.shape:
        raise expansion.refuse(function)
    return expansion.jet(
        filled, [None if term is None else term.masked_fill(mask, 0) for term in x.terms]
    )


def _pad(
    expansion: Expansion, function: Any, x: Any, pad: Any, mode: str = "constant",
    value: Any = None,
) -> Any:  # fmt: skip
    def padded(term: Tensor) -> Tensor:
        return F.pad(term, pad, mode, 0 if mode == "constant" else None)

    moved = expansion.linear(x, padded)
    return expansion.jet(function(x.value, pad, mode, value), expansion.terms(moved))


# -- sums and products --------------------------------------------------------------------------


def _add(
    expansion: Expansion, function: Any, x: Any, y: Any, *, alpha: Any = 1, sign: int = 1
) -> Any:  # fmt: skip
    options = {} if type(alpha) is int and alpha == 1 else {"alpha": alpha}
    value = function(expansion.value(x), expansion.value(y), **options)
    rank, scale = value.dim(), sign * alpha
    found: list[Term] = []
    for k, (a, b) in enumerate(zip(expansion.terms(x), expansion.terms(y), strict=True), 1):
        one, other = expansion.aligned(a, k, rank), expansion.aligned(b, k, rank)
        if other is not None and not (type(scale) is int and scale == 1):
            other = -other if type(scale) is int and scale == -1 else scale * other
        both = other if one is None else one if other is None else one + other
        found.append(expansion.fitted(both, k, value))
    return expansion.jet(value, found)


def _sub(expansion: Expansion, function: Any, x: Any, y: Any, *, alpha: Any = 1) -> Any:
    return _add(expansion, function, x, y, alpha=alpha, sign=-1)


def _rsub(expansion: Expansion, function: Any, x: Any, y: Any) -> Any:
    return _add(expansion, operator.sub, y, x, sign=-1)


def _mul(expansion: Expansion, function: Any, x: Any, y: Any) -> Any:
    value = function(expansion.value(x), expansion.value(y))
    return _times(expansion, x, y, value)


def _times(
    expansion: Expansion, x: Any, y: Any, value: Tensor,
    multiply: Callable[[Any, Any], Any] = operator.mul,
) -> Any:  # fmt: skip
    """The product of each entry, or the quotient by a constant."""
    rank = value.dim()

    def times(a: Any, a_front: bool, b: Any, b_front: bool) -> Tensor:
        a = expansion.ranked(a, rank) if a_front else a
        b = expansion.ranked(b, rank) if b_front else b
        return multiply(a, b)  # type: ignore[no-any-return]  # one of them is a tensor

    return expansion.product(x, y, value, times)


def _div(
    expansion: Expansion, function: Any, x: Any, y: Any, *, rounding_mode: Any = None
) -> Any:  # fmt: skip
    if rounding_mode is not None:
        raise expansion.refuse(function)
    value = function(expansion.value(x), expansion.value(y))
    if not expansion.has(y):
        return _times(expansion, x, y, value, operator.truediv)
    at = expansion.value(y)
    one = 1 / at
    y = composed(expansion, y, one, power(-1.0)(at, one, expansion.order))
    return _times(expansion, x, y, value)


def _rdiv(expansion: Expansion, function: Any, x: Any, y: Any) -> Any:
    return _div(expansion, operator.truediv, y, x)


def _pow(expansion: Expansion, function: Any, x: Any, exponent: Any) -> Any:
    if not expansion.has(x) or expansion.has(exponent) or isinstance(exponent, complex):
        raise expansion.refuse(function)
    value = function(expansion.value(x), exponent)
    if isinstance(exponent, Tensor):
        if value.dtype is not x.dtype or exponent.is_complex():
            raise expansion.refuse(function)
        x, exponent = x.expand(value.shape), exponent.expand(value.shape)
    else:
        exponent = float(exponent)
    slopes = power(exponent)(expansion.value(x), value, expansion.order)
    return composed(expansion, x, value, slopes)


def _addcmul(expansion: Expansion, function: Any, x: Any, a: Any, b: Any, *, value: Any = 1) -> Any:
    return x + value * (a * b)


def _lerp(expansion: Expansion, function: Any, x: Any, y: Any, weight: Any) -> Any:
    return x + weight * (y - x)


def _matmul(expansion: Expansion, function: Any, x: Any, y: Any) -> Any:
    a0, b0 = expansion.value(x), expansion.value(y)
    ranks = a0.dim(), b0.dim()

    def times(a: Tensor, a_front: bool, b: Tensor, b_front: bool) -> Tensor:
        if a_front and not b_front and ranks[1] <= 2:
            return a @ b
        if b_front and not a_front and ranks == (2, 1):
            return b @ a.mT
        return expansion.each(torch.matmul, [a, b], [a_front, b_front])  # type: ignore[no-any-return]  # a tensor

    return expansion.product(x, y, function(a0, b0), times)


_BILINEAR = ("bmm", "dot", "inner", "kron", "mm", "mv", "outer", "tensordot", "vdot")


def _bilinear(
    expansion: Expansion, function: Any, x: Any, y: Any, *args: Any, **kwargs: Any
) -> Any:
    if kwargs.get("out") is not None or _jets_among(expansion, [*args, *kwargs.values()]):
        raise expansion.refuse(function)

    def plainly(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b, *args, **kwargs)  # type: ignore[no-any-return]  # it is torch's

    def times(a: Tensor, a_front: bool, b: Tensor, b_front: bool) -> Tensor:
        return expansion.each(plainly, [a, b], [a_front, b_front])  # type: ignore[no-any-return]  # a tensor

    return expansion.product(x, y, plainly(expansion.value(x), expansion.value(y)), times)


def _einsum(expansion: Expansion, function: Any, equation: Any, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) == 1:
        return expansion.linear(operands[0], lambda x: function(equation, x))
    if len(operands) != 2:
        raise expansion.refuse(function)

    def einsum(*pair: Any) -> Any:
        return function(equation, *pair)

    return _bilinear(expansion, einsum, *operands)


def _affine(expansion: Expansion, function: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    """``F.linear``."""
    if expansion.has(weight) or expansion.has(bias) or not expansion.has(x):
        product = torch.matmul(x, weight.mT)
        return product if bias is None else product + bias
    value = function(x.value, weight, bias)
    return expansion.jet(
        value, [None if term is None else function(term, weight) for term in x.terms]
    )


def _convolution(
    expansion: Expansion, function: Any, x: Any, weight: Any, bias: Any = None, *args: Any,
    **kwargs: Any,
) -> Any:  # fmt: skip
    if _jets_among(expansion, [bias, *args, *kwargs.values()]):
        raise expansion.refuse(function)

    def plainly(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b, None, *args, **kwargs)  # type: ignore[no-any-return]  # it is torch's

    def times(a: Tensor, a_front: bool, b: Tensor, b_front: bool) -> Tensor:
        return expansion.each(plainly, [a, b], [a_front, b_front])  # type: ignore[no-any-return]  # a tensor

    value = function(expansion.value(x), expansion.value(weight), bias, *args, **kwargs)
    return expansion.product(x, weight, value, times)


# -- the table ----------------------------------------------------------------------------------

_NAMED: dict[str, Rule] = {
    **dict.fromkeys(_CONSTANT, _constant),
    **dict.fromkeys(_LINEAR, _linear),
    **dict.fromkeys(ANY, by_differentiation),
    **COMPOSED,
    **{name: elementwise(slopes) for name, slopes in KNOWN.items()},
    **dict.fromkeys(_BILINEAR, _bilinear),
    **dict.fromkeys(["__matmul__", "matmul"], _matmul),
    **dict.fromkeys(["__rdiv__", "__rtruediv__"], _rdiv),
    **dict.fromkeys(["__rsub__", "rsub"], _rsub),
    **dict.fromkeys(["add", "__add__", "__radd__"], _add),
    **dict.fromkeys(["bfloat16", "double", "float", "half", "to"], _cast),
    **dict.fromkeys(["cat", "concat", "concatenate", "stack", "hstack", "vstack"], _in_list),
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
                     "conv_transpose3d"], _convolution),
    **dict.fromkeys(["div", "divide", "true_divide", "__truediv__"], _div),
    **dict.fromkeys(["mul", "multiply", "__mul__", "__rmul__"], _mul),
    **dict.fromkeys(["pow", "__pow__", "float_power"], _pow),
    **dict.fromkeys(["sub", "subtract", "__sub__"], _sub),
    **dict.fromkeys(["expand_as", "reshape_as", "type_as"], _shaped_as),
    "addcmul": _addcmul,
    "einsum": _einsum,
    "lerp": _lerp,
    "linear": _affine,
    "masked_fill": _masked_fill,
    "pad": _pad,
    "view": _view,
    "where": _where,
}  # fmt: skip


def _table() -> Mapping[Any, Rule]:
    found: dict[Any, Rule] = {}
    for name, rule in _NAMED.items():
        found |= dict.fromkeys(overrides.functions_named(name), rule)
    for name in _ATTRIBUTES:
        found[getattr(Tensor, name).__get__] = _constant
    for name in ("T", "mT", "real"):
        found[getattr(Tensor, name).__get__] = _attribute
    return found | NORMS


RULES = _table()
"""The rules by functions; a function that is not here has none."""
