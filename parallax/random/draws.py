"""Draws: random numbers from a key, by the names ``torch`` and ``torch.distributions`` use.

Every draw takes a single key and a shape, uses the key up, and checks all it is given before it
does. The numbers depend on the key, the shape, the dtype and the kind of device, and on nothing
else: they are the same bits in eager code, under ``vmap``, ``grad`` and ``jvp``, and compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from parallax.random import ops
from parallax.random.given import Device, Shape, floating, given, probability, wide
from parallax.random.keys import Key, consume

__all__ = ["bernoulli", "dropout_mask", "exponential", "gumbel", "gumbel_noise", "normal",
           "truncated_normal", "uniform"]  # fmt: skip


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
        dtype: floating or complex; by default ``torch.get_defaultfloating()``.
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
    if isinstance(std, (int, float)) and not std >= 0:
        raise ValueError(f"normal(): std must not be negative, got {std}")
    consume(data, "normal()")
    drawn = ops.normal(data, size, dtype, where)
    if not isinstance(std, (int, float)) or std != 1:
        drawn = drawn * std
    if not isinstance(mean, (int, float)) or mean != 0:
        drawn = drawn + mean
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
        high: the upper end, not reached but by rounding; likewise.
        dtype: floating; by default ``torch.get_defaultfloating()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``low`` is above ``high``, or there is no such device or shape.
    """
    data, size, where = given(key, shape, device, "uniform()")
    dtype = floating(dtype, "uniform()")
    standard = False
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        if not low <= high:
            raise ValueError(f"uniform(): low must not exceed high, got {low} and {high}")
        standard = low == 0 and high == 1
    consume(data, "uniform()")
    drawn = ops.uniform(data, size, dtype, where)
    return drawn if standard else low + drawn * (high - low)


def truncated_normal(
    key: Key,
    shape: Shape = (),
    lower: float = -2.0,
    upper: float = 2.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Numbers from the standard normal distribution, given that they lie in [lower, upper].

    Args:
        key: a single key; used up.
        shape: of the result.
        lower: the least number.
        upper: the greatest number.
        dtype: floating; by default ``torch.get_defaultfloating()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``lower`` is not below ``upper``, or there is no such device or shape.

    Source: the inverse of the distribution function, as in ``torch.nn.init.trunc_normal_``;
    an interval beyond one tail is mirrored to the lower one, where floats are dense.
    """
    data, size, where = given(key, shape, device, "truncated_normal()")
    dtype = floating(dtype, "truncated_normal()")
    if not lower < upper:
        raise ValueError(f"truncated_normal(): lower must be below upper, got {lower}, {upper}")
    consume(data, "truncated_normal()")
    mirrored = lower > 0
    if mirrored:
        lower, upper = -upper, -lower
    least, most = (0.5 * math.erfc(-bound / math.sqrt(2)) for bound in (lower, upper))
    share = ops.uniform(data, size, torch.float64, where)
    drawn: Tensor = torch.special.ndtri(least + (most - least) * share).clamp(lower, upper)
    return (-drawn if mirrored else drawn).to(dtype)


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
    consume(data, "bernoulli()")
    precision = p.dtype if isinstance(p, Tensor) and p.dtype is torch.float64 else torch.float32
    drawn = ops.uniform(data, size, precision, where) < p
    return drawn if dtype is torch.bool else drawn.to(dtype)


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
        dtype: floating; by default ``torch.get_defaultfloating()``.
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
    probability(p, "dropout_mask(p=)")
    consume(data, "dropout_mask()")
    kept = ops.uniform(data, size, torch.float32, where) >= p
    return kept.to(dtype).mul_(1 / (1 - p) if p < 1 else 0.0)


def exponential(
    key: Key, shape: Shape = (), *, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Numbers from the exponential distribution of rate one.

    Args:
        key: a single key; used up.
        shape: of the result.
        dtype: floating; by default ``torch.get_defaultfloating()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if there is no such device or shape.
    """
    data, size, where = given(key, shape, device, "exponential()")
    dtype = floating(dtype, "exponential()")
    consume(data, "exponential()")
    return (-torch.log1p(-ops.uniform(data, size, wide(dtype), where))).to(dtype)


def gumbel(
    key: Key, shape: Shape = (), *, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Numbers from the standard Gumbel distribution.

    Args:
        key: a single key; used up.
        shape: of the result.
        dtype: floating; by default ``torch.get_defaultfloating()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``; every number is finite.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if there is no such device or shape.
    """
    data, size, where = given(key, shape, device, "gumbel()")
    dtype = floating(dtype, "gumbel()")
    consume(data, "gumbel()")
    return gumbel_noise(data, size, dtype, where)


def gumbel_noise(
    data: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What ``gumbel`` returns, for the leaf of a key that is used up."""
    precision = wide(dtype)
    drawn = ops.uniform(data, shape, precision, device).clamp_min(torch.finfo(precision).tiny)
    return (-torch.log(-torch.log(drawn))).to(dtype)
