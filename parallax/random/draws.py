"""Draws: random numbers from a key, by the names ``torch`` and ``torch.distributions`` use.

Every draw takes a single key and a shape, uses the key up, and checks all it is given before it
does. The numbers depend on the key, the shape, the dtype and the kind of device, and on nothing
else: they are the same bits in eager code, under ``vmap``, ``grad`` and ``jvp``, and compiled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import _compat
from parallax.random import ops
from parallax.random.keys import Key, consume, data_of

__all__ = ["bernoulli", "bits", "categorical", "choice", "dropout_mask", "exponential", "gumbel",
           "normal", "permutation", "randint", "truncated_normal", "uniform"]  # fmt: skip

Shape = int | Sequence[int]
Device = torch.device | str | None
_WORD_DTYPES = {torch.uint8: 1, torch.int8: 1, torch.int16: 2, torch.int32: 4, torch.int64: 8}


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
    data, shape, device = _given(key, shape, device, "normal()")
    dtype = _dtype(dtype, "normal()", complex_too=True)
    if isinstance(std, (int, float)) and not std >= 0:
        raise ValueError(f"normal(): std must not be negative, got {std}")
    consume(data, "normal()")
    drawn = ops.normal(data, shape, dtype, device)
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
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``low`` is above ``high``, or there is no such device or shape.
    """
    data, shape, device = _given(key, shape, device, "uniform()")
    dtype = _dtype(dtype, "uniform()")
    standard = False
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        if not low <= high:
            raise ValueError(f"uniform(): low must not exceed high, got {low} and {high}")
        standard = low == 0 and high == 1
    consume(data, "uniform()")
    drawn = ops.uniform(data, shape, dtype, device)
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
        dtype: floating; by default ``torch.get_default_dtype()``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``lower`` is not below ``upper``, or there is no such device or shape.

    Source: the inverse of the distribution function, as in ``torch.nn.init.trunc_normal_``;
    an interval beyond one tail is mirrored to the lower one, where floats are dense.
    """
    data, shape, device = _given(key, shape, device, "truncated_normal()")
    dtype = _dtype(dtype, "truncated_normal()")
    if not lower < upper:
        raise ValueError(f"truncated_normal(): lower must be below upper, got {lower}, {upper}")
    consume(data, "truncated_normal()")
    mirrored = lower > 0
    if mirrored:
        lower, upper = -upper, -lower
    least, most = (0.5 * math.erfc(-bound / math.sqrt(2)) for bound in (lower, upper))
    drawn = ops.uniform(data, shape, torch.float64, device)
    drawn = torch.special.ndtri(least + (most - least) * drawn).clamp(lower, upper)
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
    data, shape, device = _given(key, shape, device, "bernoulli()")
    _probability(p, "bernoulli(p=)")
    consume(data, "bernoulli()")
    precision = p.dtype if isinstance(p, Tensor) and p.dtype is torch.float64 else torch.float32
    drawn = ops.uniform(data, shape, precision, device) < p
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
    data, shape, device = _given(key, shape, device, "dropout_mask()")
    dtype = _dtype(dtype, "dropout_mask()")
    _probability(p, "dropout_mask(p=)")
    consume(data, "dropout_mask()")
    kept = ops.uniform(data, shape, torch.float32, device) >= p
    return kept.to(dtype).mul_(1 / (1 - p) if p < 1 else 0.0)


def randint(
    key: Key,
    shape: Shape,
    low: int,
    high: int,
    *,
    dtype: torch.dtype = torch.int64,
    device: Device = None,
) -> Tensor:
    """Integers from ``low`` up to and without ``high``, equally likely.

    Args:
        key: a single key; used up.
        shape: of the result.
        low: the least.
        high: one above the greatest.
        dtype: an integer dtype that holds both.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if ``low`` is not below ``high``, or ``dtype`` does not hold them.
    """
    data, shape, device = _given(key, shape, device, "randint()")
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        raise TypeError(f"randint(): dtype must be an integer one, got {dtype}")
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
            raise TypeError(f"randint(): {name} must be an int, got {value!r}")
    if not low < high:
        raise ValueError(f"randint(): low must be below high, got {low} and {high}")
    limits = torch.iinfo(dtype)
    if low < limits.min or high - 1 > limits.max:
        raise ValueError(f"randint(): {dtype} does not hold {low} to {high - 1}")
    consume(data, "randint()")
    if dtype is torch.int64:
        return ops.randint(data, shape, low, high, dtype, device)
    return ops.randint(data, shape, low, high, torch.int64, device).to(dtype)


def bits(
    key: Key, shape: Shape = (), *, dtype: torch.dtype = torch.int64, device: Device = None
) -> Tensor:
    """Random bits: integers over the whole range of ``dtype``.

    Args:
        key: a single key; used up.
        shape: of the result.
        dtype: ``uint8``, ``int8``, ``int16``, ``int32`` or ``int64``.
        device: by default ``torch.get_default_device()``.

    Returns:
        A tensor of ``shape``.

    Raises:
        KeyReusedError: if the key was used before.
        TypeError: if ``dtype`` is another.
        ValueError: if there is no such device or shape.
    """
    data, shape, device = _given(key, shape, device, "bits()")
    size = _WORD_DTYPES.get(dtype)
    if size is None:
        names = ", ".join(str(known) for known in _WORD_DTYPES)
        raise TypeError(f"bits(): dtype must be one of {names}, got {dtype}")
    consume(data, "bits()")
    n = math.prod(shape)
    words = ops.bits(data, -(-n * size // 8), device)
    return (words if size == 8 else words.view(dtype)[:n]).reshape(shape)


def permutation(key: Key, x: int | Tensor, *, dim: int = 0, device: Device = None) -> Tensor:
    """The integers below ``x``, or the slices of a tensor, in random order.

    Args:
        key: a single key; used up.
        x: a count, or a tensor.
        dim: which dimension of the tensor to shuffle.
        device: for a count; by default ``torch.get_default_device()``.

    Returns:
        An int64 tensor of ``x`` numbers, or a tensor like ``x``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if the count is negative.

    Example:
        >>> from parallax import random
        >>> random.permutation(random.key(0), 5)
        tensor([4, 0, 3, 1, 2])
    """
    n = x.shape[dim] if isinstance(x, Tensor) else x
    where = x.device if isinstance(x, Tensor) else device
    data, shape, device = _given(key, (n,), where, "permutation()")
    consume(data, "permutation()")
    order = ops.permutation(data, shape[0], device)
    return x.index_select(dim, order) if isinstance(x, Tensor) else order


def exponential(
    key: Key, shape: Shape = (), *, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Numbers from the exponential distribution of rate one.

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
    """
    data, shape, device = _given(key, shape, device, "exponential()")
    dtype = _dtype(dtype, "exponential()")
    consume(data, "exponential()")
    return (-torch.log1p(-ops.uniform(data, shape, _wide(dtype), device))).to(dtype)


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
    """
    data, shape, device = _given(key, shape, device, "gumbel()")
    dtype = _dtype(dtype, "gumbel()")
    consume(data, "gumbel()")
    return _gumbel(data, shape, dtype, device)


def _gumbel(data: Tensor, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    wide = _wide(dtype)
    drawn = ops.uniform(data, shape, wide, device).clamp_min(torch.finfo(wide).tiny)
    return (-torch.log(-torch.log(drawn))).to(dtype)


def categorical(key: Key, logits: Tensor, shape: Shape = (), *, dim: int = -1) -> Tensor:
    """Categories, drawn with probability ``softmax(logits)``.

    Args:
        key: a single key; used up.
        logits: unnormalised log-probabilities along ``dim``.
        shape: of independent draws, which come before the other dimensions of ``logits``.
        dim: the dimension of ``logits`` that holds the categories.

    Returns:
        int64 indices of shape ``(*shape, *logits.shape without dim)``.

    Raises:
        KeyReusedError: if the key was used before.
        TypeError: if ``logits`` is no floating tensor.
        ValueError: if it has no dimension or no category.

    Source: the Gumbel-max trick (E. J. Gumbel, 1954).
    """
    if not isinstance(logits, Tensor) or not logits.dtype.is_floating_point:
        raise TypeError(f"categorical(): logits must be a floating tensor, got {logits!r}")
    if logits.ndim == 0 or logits.shape[dim] == 0:
        raise ValueError(f"categorical(): no category in logits of shape {tuple(logits.shape)}")
    data, shape, device = _given(key, shape, logits.device, "categorical()")
    consume(data, "categorical()")
    noise = _gumbel(data, (*shape, *logits.shape), _wide(logits.dtype), device)
    return (noise + logits).argmax(dim if dim < 0 else dim - logits.ndim)


def choice(
    key: Key,
    x: int | Tensor,
    shape: Shape = (),
    *,
    replace: bool = True,
    p: Tensor | None = None,
    dim: int = 0,
) -> Tensor:
    """Elements drawn from a tensor, or from the integers below ``x``.

    Args:
        key: a single key; used up.
        x: a tensor whose slices along ``dim`` are the elements, or a count.
        shape: how many to draw.
        replace: whether an element may come twice.
        p: the probability of each element; by default all are equally likely.
        dim: of the elements.

    Returns:
        The drawn elements, with ``shape`` in the place of ``dim``.

    Raises:
        KeyReusedError: if the key was used before.
        ValueError: if there is nothing to draw from, more is drawn without replacement than there
            is, or ``p`` is not one probability per element.

    Source: without replacement and with ``p``, the Gumbel-top-k trick (T. Vieira, 2014).
    """
    n = x.shape[dim] if isinstance(x, Tensor) else x
    if not isinstance(n, (int, torch.SymInt)) or isinstance(n, bool) or n < 1:
        raise ValueError(f"choice(): nothing to draw from: got {n!r} elements")
    where = x.device if isinstance(x, Tensor) else None if p is None else p.device
    data, shape, device = _given(key, shape, where, "choice()")
    count = math.prod(shape)
    if not replace and count > n:
        raise ValueError(f"choice(replace=False): cannot draw {count} of {n} elements")
    if p is not None:
        _probability(p, "choice(p=)")
        if p.shape != (n,):
            raise ValueError(f"choice(p=): expected {n} probabilities, got {tuple(p.shape)}")
        if not replace and ops.is_plain(p) and int((p > 0).sum()) < count:
            raise ValueError(f"choice(replace=False): fewer than {count} elements have p > 0")
    consume(data, "choice()")
    index = _indices(data, n, shape, count, device, replace, p)
    if not isinstance(x, Tensor):
        return index
    dim %= x.ndim
    drawn = x.index_select(dim, index.reshape(-1))
    return drawn.reshape(*x.shape[:dim], *shape, *x.shape[dim + 1 :])


def _indices(
    data: Tensor,
    n: int,
    shape: Any,
    count: int,
    device: torch.device,
    replace: bool,
    p: Tensor | None,
) -> Tensor:
    if p is None:
        if replace:
            return ops.randint(data, shape, 0, n, torch.int64, device)
        return ops.permutation(data, n, device)[:count].reshape(shape)
    lead = shape if replace else ()
    scores = p.log() + _gumbel(data, (*lead, n), _wide(p.dtype), device)
    return scores.argmax(-1) if replace else scores.topk(count).indices.reshape(shape)


# -- what is given --------------------------------------------------------------------------


def _given(key: Key, shape: Any, device: Device, by: str) -> tuple[Tensor, Any, torch.device]:
    """The key's leaf, the shape and the device, checked; nothing is used up yet."""
    data = data_of(key, by)
    if not isinstance(shape, (tuple, list)):
        shape = (shape,)
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, (int, torch.SymInt)):
            raise TypeError(f"{by}: a shape holds ints, got {shape}")
        if size < 0:
            raise ValueError(f"{by}: a shape holds no negative number, got {shape}")
    return data, shape, _device(device, by)


def _device(device: Device, by: str) -> torch.device:
    if device is None:
        # The dynamo of torch 2.13 does not trace get_default_device.
        return torch.empty(0).device if _compat.is_compiling() else torch.get_default_device()
    if isinstance(device, torch.device) and device.type == "cpu":
        return device
    try:
        found = torch.device(device)
        if found.type not in ("cpu", "meta"):
            torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{by}: no such device as {device!r} here: {reason}") from None
    return found


def _dtype(dtype: torch.dtype | None, by: str, *, complex_too: bool = False) -> torch.dtype:
    if dtype is None:
        return torch.get_default_dtype()
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{by}: dtype must be a torch.dtype, got {dtype!r}")
    if not (dtype.is_floating_point or (complex_too and dtype.is_complex)):
        raise TypeError(f"{by}: dtype must be a floating one, got {dtype}")
    return dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: at least single precision."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _probability(p: Any, by: str) -> None:
    if isinstance(p, Tensor):
        if not p.dtype.is_floating_point:
            raise TypeError(f"{by}: probabilities are floating, got {p.dtype}")
        # Asking for values would break a graph; there they are clamped by the comparison.
        if ops.is_plain(p) and p.device.type != "meta" and not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"{by}: a probability is outside [0, 1]")
    elif isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{by}: a probability is a float, got {p!r}")
    elif not 0 <= p <= 1:
        raise ValueError(f"{by}: a probability is between 0 and 1, got {p}")
