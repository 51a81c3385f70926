"""Operators whose first derivative torch has wrong, by operators whose derivatives are right.

They get a kernel in front of torch's where that one goes wrong: in autograd, or in ``vmap``. Other
operators, and these elsewhere, cost nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from parallax._compat import modes
from parallax._compat.underivable import below_autograd, moves

__all__ = ["mend"]

_libraries: list[Any] = []


def mend() -> None:
    """Has torch compute these operators so."""
    library: Any = torch.library.Library("aten", "IMPL")
    _libraries.append(library)  # torch keeps what it was told as long as this lives
    with warnings.catch_warnings(), modes.outside_of_all():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name, (key, kernel) in _KERNELS.items():
            library.impl(name, kernel, key, allow_override=True)


def _as_strided_scatter(
    x: Tensor, src: Tensor, size: Any, stride: Any, storage_offset: Any = None
) -> Tensor:
    """Torch gives the gradient to the entries that are overwritten, and none to the others."""
    operator = torch.ops.aten.as_strided_scatter.default
    if not (moves(x) or moves(src)):
        return below_autograd(operator, (x, src, size, stride, storage_offset), {})  # type: ignore[no-any-return]  # it is torch's
    if not x.is_contiguous():
        raise RuntimeError(
            "the gradient of torch.as_strided_scatter is known of contiguous tensors only. "
            "Write x.contiguous() for its first argument"
        )
    start = 0 if storage_offset is None else storage_offset - x.storage_offset()
    places = torch.arange(x.numel(), device=x.device).as_strided(size, stride, start)
    values = src.expand(places.shape).reshape(-1).to(x.dtype)
    return x.reshape(-1).scatter(0, places.reshape(-1), values).reshape(x.shape)


def _select_scatter(x: Tensor, src: Tensor, dim: int, index: Any) -> Tensor:
    """Torch writes the same numbers so often as there are slices, and adds up their gradients."""
    dim, count = dim % x.dim(), x.shape[dim]
    if not -count <= index < count:
        raise IndexError(f"select_scatter(): index {index} out of range for a size of {count}")
    places = torch.arange(count, device=x.device).reshape(-1, *[1] * (x.dim() - 1 - dim))
    return torch.where(places == index % count, src.unsqueeze(dim).to(x.dtype), x)


def _polar(size: Tensor, angle: Tensor) -> Tensor:
    """Torch divides by the size, so that the gradient by it is lost where it is zero."""
    if not (moves(size) or moves(angle)):
        return below_autograd(torch.ops.aten.polar.default, (size, angle), {})  # type: ignore[no-any-return]  # it is torch's
    return torch.complex(size * angle.cos(), size * angle.sin())


_KERNELS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "as_strided_scatter": ("Autograd", _as_strided_scatter),
    "polar": ("Autograd", _polar),
    "select_scatter": ("FuncTorchBatched", _select_scatter),
}
