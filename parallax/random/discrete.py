"""Draws of integers, bits and elements: what has no density."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from parallax._compat.shards import beside
from parallax._errors.arguments import check_flags, shown
from parallax.random import ops
from parallax.random.given import Device, Shape, axis, dtype_of, given, probability, wide
from parallax.random.keys import Key
from parallax.random.marks import consume

__all__ = ["bits", "categorical", "choice", "permutation", "randint"]

_WORD_DTYPES = {torch.uint8: 1, torch.int8: 1, torch.int16: 2, torch.int32: 4, torch.int64: 8}


def randint(
    key: Key,
    shape: Shape,
    low: int,
    high: int,
    *,
    dtype: torch.dtype = torch.int64,
    device: Device = None,
) -> Tensor:
    """Random integers from ``low`` to ``high - 1``, all equally likely.

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

    Example:
        >>> from parallax import random
        >>> random.randint(random.key(0), (6,), 1, 7)  # six dice
        tensor([3, 6, 5, 4, 3, 5])
    """
    data, size, where = given(key, shape, device, "randint()")
    dtype = dtype_of(dtype, "randint()", torch.int64)
    if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
        raise TypeError(f"randint(): dtype must be an integer one, got {dtype}. Write torch.int64")
    for name, value in (("low", low), ("high", high)):
        if not ops.is_int(value):
            raise TypeError(
                f"randint(): {name} must be an int, got {shown(value)}. Write "
                f"randint(key, (3,), low=0, high=10): the shape comes second"
            )
    if not low < high:
        raise ValueError(
            f"randint(): low must be below high, got {low} and {high}. Write low=0, high=10"
        )
    limits = torch.iinfo(dtype)
    if low < limits.min or high - 1 > limits.max:
        raise ValueError(
            f"randint(): {dtype} does not hold {low} to {high - 1}. Write dtype=torch.int64"
        )
    drawn = ops.randint(data, size, low, high - 1, torch.int64, where).to(dtype)
    consume(data, "randint()")
    return drawn


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

    Example:
        >>> import torch
        >>> from parallax import random
        >>> random.bits(random.key(0), (4,), dtype=torch.uint8)
        tensor([175, 207, 139, 249], dtype=torch.uint8)
    """
    data, size, where = given(key, shape, device, "bits()")
    width = _WORD_DTYPES.get(dtype)
    if width is None:
        names = ", ".join(str(known) for known in _WORD_DTYPES)
        raise TypeError(f"bits(): dtype must be one of {names}, got {shown(dtype)}")
    n = math.prod(size)
    words = ops.bits(data, -(-n * width // 8), where)
    drawn = (words if width == 8 else words.view(dtype)[:n]).reshape(size)
    consume(data, "bits()")
    return drawn


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
    dim = axis(x, dim, "permutation()")
    if isinstance(x, Tensor):
        n, device = x.shape[dim], x.device
    elif ops.is_int(x):
        n = x
    else:
        raise TypeError(
            f"permutation(): x is a count or a tensor, got {shown(x)}. Write permutation(key, 10)"
        )
    data, size, where = given(key, (n,), device, "permutation()")
    order = ops.permutation(data, size[0], where)
    drawn = x.index_select(dim, beside(order, x)) if isinstance(x, Tensor) else order
    consume(data, "permutation()")
    return drawn


def categorical(key: Key, logits: Tensor, shape: Shape = (), *, dim: int = -1) -> Tensor:
    """Indices of categories, drawn with probability ``softmax(logits)``.

    Args:
        key: a single key; used up.
        logits: unnormalised log-probabilities along ``dim``.
        shape: of independent draws, which come before the other dimensions of ``logits``.
        dim: the dimension of ``logits`` that holds the categories.

    Returns:
        int64 indices of shape ``(*shape, *logits.shape without dim)``.

    Raises:
        KeyReusedError: if the key was used before.
        TypeError: if ``logits`` is not a floating tensor.
        ValueError: if it has no dimension or no category, or gives no probabilities (``nan``); in
            transforms and compiled code, which read no numbers, this goes unnoticed.

    Source: the Gumbel-max trick (E. J. Gumbel, 1954).

    Example:
        >>> import torch
        >>> from parallax import random
        >>> logits = torch.tensor([[0.0, -9.0, -9.0], [-9.0, -9.0, 0.0]])
        >>> random.categorical(random.key(0), logits)  # one draw for each row
        tensor([0, 2])
        >>> random.categorical(random.key(1), logits, (5,)).shape  # five for each
        torch.Size([5, 2])
    """
    given_logits: Any = logits
    if not isinstance(given_logits, Tensor) or not logits.dtype.is_floating_point:
        raise TypeError(
            f"categorical(): logits must be a floating tensor, got {shown(logits)}. "
            f"Write categorical(key, torch.zeros(3))"
        )
    if logits.ndim == 0 or logits.shape[axis(logits, dim, "categorical()")] == 0:
        raise ValueError(
            f"categorical(): no category in logits of shape {tuple(logits.shape)}. "
            f"Write categorical(key, torch.zeros(3))"
        )
    most = logits.amax(dim, keepdim=True)
    if ops.is_plain(logits) and logits.device.type != "meta" and not most.isfinite().all():
        raise ValueError(
            "categorical(): logits hold nan or inf, or -inf for every category, and give no "
            "probabilities. Look for where they come from: debug.nans(fn)"
        )
    data, size, where = given(key, shape, logits.device, "categorical()")
    noise = beside(ops.gumbel(data, (*size, *logits.shape), wide(logits.dtype), where), logits)
    # Beside a large number the noise would be rounded away.
    drawn = (noise + (logits - most)).argmax(dim if dim < 0 else dim - logits.ndim)
    consume(data, "categorical()")
    return drawn


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

    Example:
        >>> import torch
        >>> from parallax import random
        >>> one, two = random.split(random.key(0))
        >>> data = torch.arange(20.0).reshape(10, 2)
        >>> batch = random.choice(one, data, (4,), replace=False)  # four different rows
        >>> batch.shape
        torch.Size([4, 2])
        >>> random.choice(two, 3, (5,), p=torch.tensor([0.9, 0.1, 0.0]))
        tensor([0, 0, 1, 0, 0])
    """
    check_flags("choice", replace=replace)
    dim = axis(x, dim, "choice()")
    if isinstance(x, Tensor):
        n = x.shape[dim]
    elif ops.is_int(x):
        n = x
    else:
        raise TypeError(
            f"choice(): x is a count or a tensor, got {shown(x)}. Write choice(key, 10)"
        )
    if n < 1:
        raise ValueError(
            f"choice(): nothing to draw from: got {n!r} elements. Write choice(key, 10)"
        )
    weights: object = p
    if weights is not None and not isinstance(weights, Tensor):
        raise TypeError(
            f"choice(p=): expected a tensor of probabilities, got {shown(p)}. "
            f"Make one: torch.tensor([0.5, 0.5])"
        )
    held = x if isinstance(x, Tensor) else p
    data, size, where = given(key, shape, None if held is None else held.device, "choice()")
    count = math.prod(size)
    if not replace and count > n:
        raise ValueError(
            f"choice(replace=False): cannot draw {count} of {n} elements. Draw fewer, or write "
            f"replace=True"
        )
    if p is not None:
        probability(p, "choice(p=)")
        if p.shape != (n,):
            raise ValueError(
                f"choice(p=): expected {n} probabilities, got a tensor of shape {tuple(p.shape)}. "
                f"Give one for each element"
            )
        if ops.is_plain(p) and int((p > 0).sum()) < (1 if replace else count):
            raise ValueError(f"choice(): {count} to draw, and too few elements have p > 0")
    drawn = _indices(data, n, size, where, replace=replace, p=p)
    if isinstance(x, Tensor):
        drawn = x.index_select(dim, beside(drawn.reshape(-1), x))
        drawn = drawn.reshape(*x.shape[:dim], *size, *x.shape[dim + 1 :])
    consume(data, "choice()")
    return drawn


def _indices(
    data: Tensor, n: int, shape: Any, where: torch.device, *, replace: bool, p: Tensor | None
) -> Tensor:
    count = math.prod(shape)
    if p is None:
        if replace:
            return ops.randint(data, shape, 0, n - 1, torch.int64, where)
        return ops.permutation(data, n, where)[:count].reshape(shape)
    lead = shape if replace else ()
    scores = p.log() + beside(ops.gumbel(data, (*lead, n), wide(p.dtype), where), p)
    return scores.argmax(-1) if replace else scores.topk(count).indices.reshape(shape)
