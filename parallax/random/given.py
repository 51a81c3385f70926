"""Checking what a draw is given, before its key is used up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import device_of, shown
from parallax.random import ops
from parallax.random.keys import Key, data_of

__all__ = ["Device", "Shape", "axis", "broadcasts", "dtype_of", "floating", "given", "parameter",
           "probability", "wide"]  # fmt: skip

Shape = int | Sequence[int]
Device = torch.device | str | None


def given(key: Key, shape: Any, device: Device, by: str) -> tuple[Tensor, Any, torch.device]:
    """The key's leaf, the shape and the device, checked; nothing is used up yet."""
    data = data_of(key, by)
    if not isinstance(shape, (tuple, list)):
        shape = (shape,)
    for size in shape:
        if not ops.is_int(size):
            raise TypeError(f"{by}: a shape holds ints, got {shown(shape)}. Write shape=(2, 3)")
        if size < 0:
            raise ValueError(
                f"{by}: a shape holds no negative number, got {shown(shape)}. Write shape=(2, 3)"
            )
    return data, shape, _device(device, by)


def _device(device: Device, by: str) -> torch.device:
    if device is None:
        # The dynamo of torch 2.13 does not trace get_default_device.
        return torch.empty(0).device if dynamo.is_compiling() else torch.get_default_device()
    if isinstance(device, torch.device) and device.type == "cpu":
        return device
    return device_of(by.removesuffix("()"), device)


def floating(dtype: torch.dtype | None, by: str, *, complex_too: bool = False) -> torch.dtype:
    """The floating dtype of a draw, or the default."""
    if dtype is None:
        return torch.get_default_dtype()
    if not (dtype_of(dtype, by).is_floating_point or (complex_too and dtype.is_complex)):
        raise TypeError(
            f"{by}: dtype must be a floating one, got {dtype}. Write dtype=torch.float32"
        )
    return dtype


def dtype_of(dtype: Any, by: str, example: torch.dtype = torch.float32) -> torch.dtype:
    """A dtype, checked to be one."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"{by}: dtype must be a torch.dtype, got {shown(dtype)}. Write dtype={example}"
        )
    return dtype


def axis(x: int | Tensor, dim: Any, by: str) -> int:
    """A dimension of a tensor, counted from the front; of a count it is checked and not used."""
    if not ops.is_int(dim):
        raise TypeError(f"{by}: dim is an int, got {shown(dim)}. Write dim=0")
    if isinstance(x, Tensor):
        if not -x.ndim <= dim < x.ndim:
            raise IndexError(
                f"{by}: there is no dim {dim} in a tensor of shape {tuple(x.shape)}. "
                f"Give one from {-x.ndim} to {x.ndim - 1}"
            )
        dim %= x.ndim
    return dim  # type: ignore[no-any-return]  # an int


def parameter(value: Any, shape: Any, by: str) -> None:
    """Checks what shifts or scales a draw: a number, or a tensor that broadcasts to its shape."""
    if isinstance(value, Tensor):
        broadcasts(value, shape, by)
    elif isinstance(value, bool) or not isinstance(value, (int, float, complex)):
        raise TypeError(
            f"{by}: expected a number or a tensor, got {shown(value)}. Give one, such as 0.5"
        )


def broadcasts(value: Tensor, shape: Any, by: str) -> None:
    """Checks that a tensor broadcasts to a shape: every number has a draw of its own."""
    sizes = reversed(tuple(value.shape))
    fits = all([a in (1, b) for a, b in zip(sizes, reversed(tuple(shape)), strict=False)])
    if value.ndim > len(shape) or not fits:
        raise ValueError(
            f"{by}: a tensor of shape {tuple(value.shape)} does not broadcast to the shape "
            f"{tuple(shape)} of the draw. Write shape={tuple(value.shape)} to draw as many"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: at least single precision."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def probability(p: Any, by: str) -> None:
    """Checks a probability, or a tensor of them."""
    if isinstance(p, Tensor):
        if not p.dtype.is_floating_point:
            raise TypeError(f"{by}: probabilities are floating, got {p.dtype}. Convert: p.float()")
        # Asking for values would break a graph; there they are clamped by the comparison.
        if ops.is_plain(p) and p.device.type != "meta" and not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"{by}: a probability is outside [0, 1]. Make it one: p.sigmoid()")
    elif isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"{by}: a probability is a float, got {shown(p)}. Give one, such as 0.5")
    elif not 0 <= p <= 1:
        raise ValueError(f"{by}: a probability is between 0 and 1, got {p}. Give one, such as 0.5")
