"""Draws: random numbers from a key, by the names ``torch`` and ``torch.distributions`` use.

Every draw takes a single key and a shape. It uses the key up when it succeeds; after an error the
key is still unused. The numbers depend on the key, the shape, the dtype and the kind of
device, and on nothing else: they are the same bits in eager code, under ``vmap``, ``grad`` and
``jvp``, and compiled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from parallax._compat.shards import beside
from parallax._errors.arguments import shown
from parallax.random import ops
from parallax.random.given import (
    Device,
    Shape,
    broadcasts,
    dtype_of,
    floating,
    given,
    parameter,
    probability,
    wide,
)
from parallax.random.keys import Key
from parallax.random.marks import consume
from parallax.random.tails import between, inside, is_below, truncated

__all__ = ["bernoulli", "dropout_mask", "exponential", "gumbel", "normal",
           "truncated_normal", "uniform"]  # fmt: skip

_LEAST_HALF = 2.0**-24  # of single precision more is representable than is drawn


def normal(
    key: Key,
    shape: Shape = (),
    mean: float | Tensor = 0.0,
    std: float | Tensor = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers from a normal distribution.

    Args:
        key: a single key; used up.
        shape: of the result.
        mean: the mean; a tensor broadcasts with ``shape``, and gradients reach it.
        std: the standard deviation; likewise.
        dtype: floating or complex; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``std`` is negative, or there is no such device or shape.

    Example:
        >>> from parallax import random
        >>> random.normal(random.key(0), (3,))
        tensor([-1.0971, -1.2645,  0.5073])
    """
    data, size, where = given(key, shape, device, "normal()")
    dtype = floating(dtype, "normal()", complex_too=True)
    parameter(mean, size, "normal(mean=)")
    parameter(std, size, "normal(std=)")
    if isinstance(std, (int, float)) and not std >= 0:
        raise ValueError(f"normal(): std must not be negative, got {std}. Write std=1.0")
    drawn = ops.normal(data, size, dtype, where)
    if not isinstance(std, (int, float)) or std != 1:
        drawn = beside(drawn, std) * std
    if not isinstance(mean, (int, float)) or mean != 0:
        drawn = beside(drawn, mean) + mean
    consume(data, "normal()")
    return drawn


def uniform(
    key: Key,
    shape: Shape = (),
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers from the uniform distribution on [low, high).

    Args:
        key: a single key; used up.
        shape: of the result.
        low: the lower end; a tensor broadcasts with ``shape``, and gradients reach it.
        high: the upper end, which is not reached; likewise.
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``low`` is above ``high``, or there is no such device or shape.

    Example:
        >>> from parallax import random
        >>> random.uniform(random.key(0), (3,), -1.0, 1.0)
        tensor([0.4091, 0.0923, 0.6884])
    """
    data, size, where = given(key, shape, device, "uniform()")
    dtype = floating(dtype, "uniform()")
    parameter(low, size, "uniform(low=)")
    parameter(high, size, "uniform(high=)")
    numbers = isinstance(low, (int, float)) and isinstance(high, (int, float))
    if numbers and not -math.inf < low <= high < math.inf:
        raise ValueError(
            f"uniform(): low and high must be finite, and low not exceed high, got {low} and "
            f"{high}. Write low=0.0, high=1.0"
        )
    drawn = ops.uniform(data, size, dtype, where)
    if not (numbers and low == 0 and high == 1):
        drawn = between(beside(beside(drawn, low), high), low, high)
    consume(data, "uniform()")
    return drawn


def truncated_normal(
    key: Key,
    shape: Shape = (),
    lower: float = -2.0,
    upper: float = 2.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers from the standard normal distribution truncated to [lower, upper].

    Args:
        key: a single key; used up.
        shape: of the result.
        lower: the least number.
        upper: the greatest number.
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``lower`` is not below ``upper``, or there is no such device or shape.

    Source: the inverse of the distribution function, as in ``torch.nn.init.trunc_normal_``; for
    intervals far out or narrow see ``random.tails``.

    Example:
        >>> from parallax import random
        >>> random.truncated_normal(random.key(0), (3,), lower=-1.0, upper=1.0)
        tensor([0.2353, 0.4488, 0.7767])
    """
    data, size, where = given(key, shape, device, "truncated_normal()")
    dtype = floating(dtype, "truncated_normal()")
    for name, bound in (("lower", lower), ("upper", upper)):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)):
            raise TypeError(
                f"truncated_normal({name}=): expected a number, got {shown(bound)}. "
                f"Write lower=-2.0, upper=2.0"
            )
    if not lower < upper:
        raise ValueError(
            f"truncated_normal(): lower must be below upper, got {lower}, {upper}. "
            f"Write lower=-2.0, upper=2.0"
        )
    share = ops.uniform(data, size, torch.float64, where)
    drawn = truncated(share, lower, upper).to(dtype)
    if dtype is not torch.float64:
        drawn = inside(drawn, lower, upper)
    consume(data, "truncated_normal()")
    return drawn


def bernoulli(
    key: Key,
    shape: Shape = (),
    p: float | Tensor = 0.5,
    *,
    dtype: torch.dtype = torch.bool,
    device: Device = None,
) -> Tensor:
    """Ones with probability ``p``, zeros otherwise.

    Args:
        key: a single key; used up.
        shape: of the result.
        p: a probability; a tensor broadcasts with ``shape``.
        dtype: of the result.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``p`` is outside [0, 1], or there is no such device or shape.

    Example:
        >>> from parallax import random
        >>> random.bernoulli(random.key(2), (4,), 0.25)
        tensor([False,  True, False, False])
    """
    data, size, where = given(key, shape, device, "bernoulli()")
    probability(p, "bernoulli(p=)")
    if isinstance(p, Tensor):
        broadcasts(p, size, "bernoulli(p=)")
    dtype = dtype_of(dtype, "bernoulli()", torch.bool)
    if isinstance(p, Tensor) and p.dtype is torch.float64:
        drawn = (beside(ops.uniform(data, size, torch.float64, where), p) < p).to(dtype)
    else:
        drawn = is_below(data, size, p, where).to(dtype)
    consume(data, "bernoulli()")
    return drawn


def dropout_mask(
    key: Key,
    shape: Shape,
    p: float = 0.5,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """What dropout multiplies by: zeros with probability ``p``, ``1 / (1 - p)`` otherwise.

    Args:
        key: a single key; used up.
        shape: of the mask.
        p: the probability of a zero, as in ``torch.nn.functional.dropout``.
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``p`` is outside [0, 1], or there is no such device or shape.

    Example:
        >>> from parallax import random
        >>> random.dropout_mask(random.key(0), (4,), 0.5)
        tensor([2., 2., 2., 0.])
    """
    data, size, where = given(key, shape, device, "dropout_mask()")
    dtype = floating(dtype, "dropout_mask()")
    given_p: object = p
    if isinstance(given_p, Tensor):
        raise TypeError(
            f"dropout_mask(p=): a probability is a float, got {shown(p)}. For one per number "
            f"write ~random.bernoulli(key, shape, p)"
        )
    probability(p, "dropout_mask(p=)")
    mask = (~is_below(data, size, p, where)).to(dtype).mul_(1 / (1 - p) if p < 1 else 0.0)
    consume(data, "dropout_mask()")
    return mask


def exponential(
    key: Key, shape: Shape = (), *, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Numbers from the exponential distribution of rate one; none is zero.

    Args:
        key: a single key; used up.
        shape: of the result.
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if there is no such device or shape.

    Example:
        >>> from parallax import random
        >>> random.exponential(random.key(0), (3,)) / 2.0  # of rate 2
        tensor([0.6096, 0.3950, 0.9296])
    """
    data, size, where = given(key, shape, device, "exponential()")
    dtype = floating(dtype, "exponential()")
    drawn = ops.exponential(data, size, wide(dtype), where).to(dtype)
    if dtype is torch.float16:
        drawn = drawn.clamp_min(_LEAST_HALF)
    consume(data, "exponential()")
    return drawn


def gumbel(
    key: Key, shape: Shape = (), *, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Numbers from the standard Gumbel distribution.

    Args:
        key: a single key; used up.
        shape: of the result.
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``; every number is finite.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if there is no such device or shape.

    Example:
        >>> import torch
        >>> from parallax import random
        >>> logits = torch.tensor([2.0, 0.0, 0.0])
        >>> drawn = (logits + random.gumbel(random.key(0), (1000, 3))).argmax(1)
        >>> drawn.bincount() / 1000  # near softmax(logits): 0.787, 0.107, 0.107
        tensor([0.7890, 0.1020, 0.1090])
    """
    data, size, where = given(key, shape, device, "gumbel()")
    dtype = floating(dtype, "gumbel()")
    drawn = ops.gumbel(data, size, wide(dtype), where).to(dtype)
    consume(data, "gumbel()")
    return drawn
