"""Where plain formulas of draws go wrong: ends of intervals, rare events, far tails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._compat.shards import beside
from parallax.random import ops

__all__ = ["between", "inside", "is_below", "truncated"]

_RARE = 2.0**-10  # from here on the steps of single precision, 2**-24, show in a probability
_STEP = 2.0**-24
_LEAST_MASS = 1e-290  # beyond it the tail of the distribution function is no normal number
_NARROWEST = 2.0**-24  # an interval with less of the tail's mass has too few numbers in it
_FLAT = 1e-4  # in intervals narrower than this the curvature of the density does not show


# -- ends of intervals ------------------------------------------------------------------------


def between(share: Tensor, low: Any, high: Any) -> Tensor:
    """Uniform numbers from ``low`` up to and without ``high``, from such between zero and one."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        drawn: Tensor = low + share * (high - low)
        top = torch.as_tensor(high, dtype=drawn.dtype, device=drawn.device).detach()
        below = torch.maximum(torch.minimum(drawn, _next(top, -math.inf)), low + 0 * drawn)
        return torch.where(drawn < high, drawn, below)
    width, drawn = high - low, share
    if width <= torch.finfo(share.dtype).max:
        drawn = low + share * width
    else:  # the width overflows, where the ends do not
        drawn = low * (1 - share) + high * share
    return drawn if width == 0 else drawn.clamp(max=_last(low, high, share.dtype))


def inside(drawn: Tensor, lower: float, upper: float) -> Tensor:
    """Numbers that were rounded out of an interval, put back into it."""
    return drawn.clamp(_at_least(lower, drawn.dtype), _at_most(upper, drawn.dtype))


def _rounded(number: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(number, dtype=dtype, device="cpu"))


def _next(tensor: Tensor, towards: float) -> Tensor:
    """The next number of the dtype; torch has no ``nextafter`` of half precision."""
    if tensor.dtype is not torch.float16:
        return torch.nextafter(tensor, torch.full_like(tensor, towards))
    wide = tensor.float()
    step = torch.exp2(torch.floor(torch.log2(wide.abs().clamp_min(2.0**-14))) - 10)
    power = (wide.abs() == torch.exp2(torch.floor(torch.log2(wide.abs())))) & (wide > 0)
    step = torch.where(power & (wide.abs() > 2.0**-14), step / 2, step)
    return (wide - step if towards < 0 else wide + step).half()


@dynamo.constant_in_traces
def _below(number: float, dtype: torch.dtype) -> float:
    """The greatest number of a dtype that is less, as the dtype sees it."""
    return float(_next(torch.tensor(number, dtype=dtype, device="cpu"), -math.inf))


@dynamo.constant_in_traces
def _last(low: float, high: float, dtype: torch.dtype) -> float:
    """The greatest number below ``high``; ``low`` where the dtype has none between them."""
    return max(_below(high, dtype), _rounded(low, dtype))


@dynamo.constant_in_traces
def _at_most(number: float, dtype: torch.dtype) -> float:
    near = _rounded(number, dtype)
    return near if near <= number else _below(near, dtype)


@dynamo.constant_in_traces
def _at_least(number: float, dtype: torch.dtype) -> float:
    return -_at_most(-number, dtype)


# -- rare events ------------------------------------------------------------------------------


def is_below(data: Tensor, shape: Sequence[int], p: Any, device: torch.device) -> Tensor:
    """Whether uniform numbers are less than a probability of single precision.

    Where that is near zero or one, the numbers have twice the bits.
    """
    if not isinstance(p, Tensor) and (p in (0, 1) or _RARE <= p <= 1 - _RARE):
        coarse: Tensor = ops.uniform(data, shape, torch.float32, device) < p
        return coarse
    parts = beside(ops.uniform(data, (2, *shape), torch.float32, device).double(), p)
    fine: Tensor = parts[0] + parts[1] * _STEP < p
    return fine


# -- far tails --------------------------------------------------------------------------------


def truncated(share: Tensor, lower: float, upper: float) -> Tensor:
    """Standard normal numbers within an interval, from uniform numbers of double precision."""
    drawn: Tensor
    mirrored = lower > 0
    if mirrored:
        lower, upper = -upper, -lower  # to the lower tail, where floats are dense
    least, most = (0.5 * math.erfc(-bound / math.sqrt(2)) for bound in (lower, upper))
    if most > _LEAST_MASS and most - least > _NARROWEST * most:
        drawn = torch.special.ndtri(least + (most - least) * share).clamp(lower, upper)
    elif upper - lower < _FLAT:
        drawn = (upper - _sloped(share, -upper, upper - lower)).clamp(lower, upper)
    else:
        drawn = (upper - _far(share, -upper, upper - lower)).clamp(lower, upper)
    return -drawn if mirrored else drawn


def _sloped(share: Tensor, start: float, width: float) -> Tensor:
    """How far beyond ``start`` a normal number is, if it is less than a small ``width``.

    The density there falls as ``exp(-start * t)``.
    """
    fall = start * width
    if abs(fall) < 1e-12:
        return share * width
    return torch.log1p(share * math.expm1(-fall)) / -start


def _far(share: Tensor, start: float, width: float) -> Tensor:
    """How far beyond ``start``, far out, a normal number is, if it is less than ``width``.

    The mass above ``start + t`` falls as ``exp(-h(t))``, and ``h`` is convex: Newton's iteration
    from its slope at zero converges from above. ``erfcx`` is the tail without its exponential.
    """
    root = math.sqrt(0.5)
    first = torch.special.erfcx(share.new_full((), start * root))
    if width < math.inf:
        last = torch.special.erfcx(share.new_full((), (start + width) * root))
        whole = start * width + width * width / 2 + torch.log(first / last)
        share = share * -torch.expm1(-whole)
    wanted = -torch.log1p(-share)
    slope = math.sqrt(2 / math.pi)
    t: Tensor = wanted * first / slope
    for _ in range(4):
        tail = torch.special.erfcx((start + t) * root)
        height = start * t + t * t / 2 + torch.log(first / tail)
        t = t - (height - wanted) * tail / slope
    return t
