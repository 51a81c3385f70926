"""Taylor rules of functions of each entry: the formula of Faa di Bruno, and their derivatives.

Of the common ones the derivatives are written here; those of the others are torch's own, one after
the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from parallax.func.jets import Expansion, Rule, Term

__all__ = ["ANY", "KNOWN", "by_differentiation", "composed", "elementwise", "power"]

Slope = Tensor | float | None
"""A derivative; ``None`` is zero."""

Slopes = tuple[Tensor | None, Sequence[Slope]]
"""The derivatives of orders 1, 2, ...; a factor that all have, if they have one, stands first."""

Derivatives = Callable[[Tensor, Tensor, int], Slopes]
"""Takes the argument, the value and an order to the derivatives."""


def composed(expansion: Expansion, x: Tensor, value: Tensor, slopes: Slopes) -> Tensor:
    """The jet of a function of each entry.

    Args:
        expansion: the run.
        x: the jet of the argument.
        value: the value of the function.
        slopes: its derivatives at the value of the argument.
    """
    terms, (common, factors) = expansion.terms(x), slopes
    found: list[Term] = []
    for k in range(1, expansion.order + 1):
        total: Term = None
        for count, factor in enumerate(factors[:k], 1):
            inner = None if factor is None else _inner(expansion, terms, k, count)
            if factor is None or inner is None:
                continue
            part = inner if isinstance(factor, int) and factor == 1 else factor * inner
            total = part if total is None else total + part
        found.append(total if total is None or common is None else common * total)
    return expansion.jet(value, found)


def _inner(expansion: Expansion, terms: Sequence[Term], order: int, count: int) -> Term:
    """The partial Bell polynomial of so many factors, summed over directions if collapsed."""
    total: Term = None
    for scale, sizes in _partitions(order, count):
        factors = [terms[size - 1] for size in sizes]
        if any([factor is None for factor in factors]):
            continue
        part: Any = math.prod(factors[1:], start=factors[0]) if count > 1 else factors[0]  # type: ignore[type-var]  # none is None
        part = part if scale == 1 else scale * part
        total = part if total is None else total + part
    if total is None or count == 1 or expansion.directions is None or expansion.in_front(order):
        return total
    return total.sum(0)


@cache
def _partitions(order: int, count: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The ways to split a set of ``order`` into ``count`` parts: how many, of which sizes."""

    def sizes(rest: int, parts: int, least: int) -> Iterator[tuple[int, ...]]:
        if parts == 1:
            yield (rest,)
            return
        for first in range(least, rest // parts + 1):
            for others in sizes(rest - first, parts - 1, first):
                yield (first, *others)

    found = []
    for split in sizes(order, count, 1):
        ways = math.factorial(order)
        for size in split:
            ways //= math.factorial(size)
        for size in set(split):
            ways //= math.factorial(split.count(size))
        found.append((ways, split))
    return tuple(found)


# -- derivatives of the common functions --------------------------------------------------------

Polynomial = tuple[int, ...]
"""Coefficients, from the constant one on."""


def _evaluated(coefficients: Polynomial, y: Tensor) -> Tensor | int:
    """The value of a polynomial, by the scheme of Horner."""
    total: Tensor | int = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = total * y
        total = total + c if c else total
    return total


def _plus(a: Polynomial, b: Polynomial) -> Polynomial:
    size = max(len(a), len(b))
    padded = [(*p, *[0] * (size - len(p))) for p in (a, b)]
    return _trimmed(tuple([i + j for i, j in zip(*padded, strict=True)]))


def _trimmed(p: Polynomial) -> Polynomial:
    """Without the highest coefficients that are zero."""
    while len(p) > 1 and p[-1] == 0:
        p = p[:-1]
    return p


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    total = [0] * (len(a) + len(b) - 1)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            total[i + j] += p * q
    return tuple(total)


@cache
def _factors(slope: Polynomial, order: int) -> tuple[Polynomial, ...]:
    """The derivatives of a function y with y' = slope(y), each divided by y'."""
    found: list[Polynomial] = [(1,)]
    steeper = tuple([k * c for k, c in enumerate(slope)][1:])
    for _ in range(order - 1):
        last = found[-1]
        onward = tuple([k * c for k, c in enumerate(last)][1:]) or (0,)
        found.append(_plus(_times(steeper, last), _times(slope, onward)))
    return tuple(found)


def _autonomous(slope: Polynomial, first: Callable[[Tensor], Tensor]) -> Derivatives:
    """The derivatives of a function whose slope is a polynomial of its value."""

    def slopes(x: Tensor, y: Tensor, order: int) -> Slopes:
        del x
        return first(y), [_evaluated(factor, y) for factor in _factors(slope, order)]

    return slopes


_tanh = _autonomous((1, 0, -1), lambda y: 1 - y * y)
_sigmoid = _autonomous((0, 1, -1), lambda y: y * (1 - y))


def _exp(x: Tensor, y: Tensor, order: int) -> Slopes:
    del x
    return y, [1] * order


def _expm1(x: Tensor, y: Tensor, order: int) -> Slopes:
    del y
    return x.exp(), [1] * order


def _sin(x: Tensor, y: Tensor, order: int) -> Slopes:
    other = x.cos()
    turns: list[Slope] = [other, -y, -other, y] if order > 1 else [other]
    return None, [turns[k % 4] for k in range(order)]


def _cos(x: Tensor, y: Tensor, order: int) -> Slopes:
    other = x.sin()
    turns: list[Slope] = [-other, -y, other, y]
    return None, [turns[k % 4] for k in range(order)]


def _sinh(x: Tensor, y: Tensor, order: int) -> Slopes:
    other = x.cosh()
    return None, [y if k % 2 else other for k in range(order)]


def _cosh(x: Tensor, y: Tensor, order: int) -> Slopes:
    other = x.sinh()
    return None, [y if k % 2 else other for k in range(order)]


def power(exponent: float | Tensor) -> Derivatives:
    """Of a power, with a number or a constant of the argument's shape as exponent."""

    def slopes(x: Tensor, y: Tensor, order: int) -> Slopes:
        del y
        found: list[Slope] = []
        scale: Any = 1.0
        now = exponent
        for _ in range(order):
            scale, now = scale * now, now - 1
            if isinstance(now, Tensor):  # zero, not zero times an infinite power
                found.append(torch.where(scale == 0, 0, scale * x.pow(now)))
            elif scale == 0:
                found.append(None)
            elif now == 0:
                found.append(scale)
            else:
                found.append(scale * (x if now == 1 else x.pow(now)))
        return None, found

    return slopes


def _logarithm(scale: float, shift: float) -> Derivatives:
    """Of a logarithm of ``x + shift``; ``scale`` is one over that of its base."""

    def slopes(x: Tensor, y: Tensor, order: int) -> Slopes:
        del y
        one = 1 / (x + shift if shift else x)
        signed = [(-1) ** k * math.factorial(k) for k in range(order)]
        return one if scale == 1 else scale * one, [
            c if k == 0 else c * one**k for k, c in enumerate(signed)
        ]

    return slopes


@cache
def _hermite(order: int) -> tuple[Polynomial, ...]:
    """The derivatives of exp(-x^2 / 2), each divided by it."""
    found: list[Polynomial] = [(1,)]
    for _ in range(order - 1):
        last = found[-1]
        steeper = tuple([k * c for k, c in enumerate(last)][1:]) or (0,)
        found.append(_plus(steeper, _times((0, -1), last)))
    return tuple(found)


def _erf(x: Tensor, y: Tensor, order: int) -> Slopes:
    del y
    root = math.sqrt(2)  # erf(x) = 2 Phi(root x) - 1
    bell = torch.exp(-x * x) * (2 / math.sqrt(math.pi))
    at = root * x
    return bell, [root**k * _evaluated(p, at) if k else 1 for k, p in enumerate(_hermite(order))]


def _gated(x: Tensor, gate: Tensor, slopes: Slopes) -> Slopes:
    """Of ``x`` times a gate, from the value of the gate and its derivatives."""
    common, factors = slopes
    rows: list[Any] = [gate, *[factor * common for factor in factors]]  # type: ignore[operator]  # not None
    pairs = enumerate(pairwise(rows), 1)
    return None, [x * high + (k * low if k > 1 else low) for k, (low, high) in pairs]


def _silu(x: Tensor, y: Tensor, order: int) -> Slopes:
    del y
    gate = x.sigmoid()
    return _gated(x, gate, _sigmoid(x, gate, order))


def _gelu(x: Tensor, y: Tensor, order: int) -> Slopes:
    del y
    bell = torch.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    gate = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))
    return _gated(x, gate, (bell, [_evaluated(p, x) for p in _hermite(order)]))


KNOWN: dict[str, Derivatives] = {
    "cos": _cos,
    "cosh": _cosh,
    "erf": _erf,
    "exp": _exp,
    "expm1": _expm1,
    "gelu": _gelu,
    "log": _logarithm(1.0, 0.0),
    "log10": _logarithm(1 / math.log(10), 0.0),
    "log1p": _logarithm(1.0, 1.0),
    "log2": _logarithm(1 / math.log(2), 0.0),
    "reciprocal": power(-1.0),
    "rsqrt": power(-0.5),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "sin": _sin,
    "sinh": _sinh,
    "sqrt": power(0.5),
    "square": power(2.0),
    "tanh": _tanh,
}
"""Functions of one tensor and their derivatives, by name."""

ANY = (
    "abs", "absolute", "acos", "acosh", "arccos", "arccosh", "arcsin", "arcsinh", "arctan",
    "arctanh", "asin", "asinh", "atan", "atanh", "celu", "clamp", "clamp_max", "clamp_min", "clip",
    "digamma", "elu", "erfc", "erfcx", "erfinv", "exp2", "expit", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "leaky_relu", "lgamma", "log_ndtr", "logit", "logsigmoid",
    "nan_to_num", "ndtr", "ndtri", "prelu", "relu", "relu6", "selu", "softplus", "softshrink",
    "softsign", "tan", "tanhshrink", "threshold",
)  # fmt: skip
"""Functions of each entry whose derivatives are torch's, by name."""


def elementwise(slopes: Derivatives) -> Rule:
    """The rule of a function of one tensor whose derivatives are known."""

    def rule(expansion: Expansion, function: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or any([v not in (False, "none") for v in kwargs.values()]):
            return by_differentiation(expansion, function, x, *args, **kwargs)
        at = expansion.value(x)
        value = function(at, **kwargs)
        return composed(expansion, x, value, slopes(at, value, expansion.order))

    return rule


def by_differentiation(
    expansion: Expansion, function: Any, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The rule of a function of each entry, whose derivatives are torch's."""
    options = [*args, *kwargs.values()]
    if any([option is True for option in options]) or "out" in kwargs:
        raise expansion.refuse(function)  # it writes in place
    if not expansion.has(x) or any([expansion.has(option) for option in options]):
        raise expansion.refuse(function)
    at = expansion.value(x)
    if at.is_complex():  # such as abs, which is not complex differentiable
        raise expansion.refuse(function)
    apply: Any = partial(_applied, function, args, kwargs)
    value = apply(at)
    if value.shape != at.shape:
        raise expansion.refuse(function)
    slopes: list[Slope] = []
    for _ in range(expansion.order):
        apply = partial(_slope, apply)
        slopes.append(apply(at))
    return composed(expansion, x, value, (None, slopes))


def _applied(function: Any, args: Sequence[Any], kwargs: dict[str, Any], x: Tensor) -> Any:
    return function(x, *args, **kwargs)


def _slope(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The derivative of a function of each entry."""
    found: Any = torch.func.vjp(function, x)
    value, pull = found
    return pull(torch.ones_like(value))[0]  # type: ignore[no-any-return]  # a tensor
