"""Resizing signals, images and volumes by interpolation."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags, shown
from parallax.core.module import Module
from parallax.nn.arguments import is_int, one_of
from parallax.nn.refusal import name_in, refuse

__all__ = ["Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d"]

_RANKS = {
    "nearest": (3, 4, 5),
    "nearest-exact": (3, 4, 5),
    "area": (3, 4, 5),
    "linear": (3,),
    "bilinear": (4,),
    "bicubic": (4,),
    "trilinear": (5,),
}
_CORNERED = ("linear", "bilinear", "bicubic", "trilinear")
_SHAPES = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}

Factors = float | tuple[float, ...]
"""One factor for every dimension, or one for each."""


class _Upsample(Module):
    """What all upsampling shares.

    Args:
        size: the size of the output: an int, or one for each dimension; or
        scale_factor: how much larger it is: a number, or one for each dimension.

    Raises:
        TypeError: if an argument is of another type, or the input is not a tensor.
        ValueError: if arguments do not go together, or the input is of another shape.
    """

    size: int | tuple[int, ...] | None
    scale_factor: float | tuple[float, ...] | None
    method: str
    align_corners: bool | None
    recompute_scale_factor: bool | None

    def __init__(
        self,
        size: Any,
        scale_factor: Any,
        mode: str,
        align_corners: bool | None,
        recompute_scale_factor: bool | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.method = one_of(name, "mode", mode, *_RANKS)
        if (size is None) == (scale_factor is None):
            raise ValueError(f"{name}: give either size or scale_factor")
        if align_corners is not None:
            check_flags(name, align_corners=align_corners)
        if recompute_scale_factor is not None:
            check_flags(name, recompute_scale_factor=recompute_scale_factor)
        if align_corners is not None and mode not in _CORNERED:
            raise ValueError(f"{name}(align_corners=): must be None for mode={mode!r}")
        if recompute_scale_factor and size is not None:
            raise ValueError(f"{name}(recompute_scale_factor=): must be None or False for a size")
        self.size = None if size is None else _sizes(name, size)
        self.scale_factor = None if scale_factor is None else _factors(name, scale_factor)
        self.align_corners = align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        """The interpolated input."""
        try:
            return F.interpolate(
                input, self.size, self.scale_factor, self.method, self.align_corners,
                self.recompute_scale_factor,
            )  # fmt: skip
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(input)
            name_in(error, self)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another rank, or empty where it must not be."""
        ranks = _RANKS[self.method]
        given = self.size if self.scale_factor is None else self.scale_factor
        if isinstance(given, tuple):
            ranks = tuple([rank for rank in ranks if rank == len(given) + 2])
        expected = " or ".join([_SHAPES[rank] for rank in ranks])
        if not isinstance(input, Tensor) or input.dim() not in ranks or not all(input.shape[1:]):
            refuse(self, f"{expected} with no size 0 but N", input)

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        if self.scale_factor is not None:
            return f"scale_factor={self.scale_factor!r}, mode={self.method!r}"
        return f"size={self.size!r}, mode={self.method!r}"


def _sizes(layer: str, size: Any) -> Any:
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if not sizes or not all(map(is_int, sizes)):
        raise TypeError(
            f"{layer}(size=): expected an int or one for each dimension, got {shown(size)}. "
            f"Write size=2 or size=(2, 2)"
        )
    if min(sizes) < 1:
        raise ValueError(f"{layer}(size=): must be at least 1, got {size!r}")
    return sizes if isinstance(size, (tuple, list)) else size


def _factors(layer: str, factor: Any) -> Any:
    factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,)
    if not factors or not all(
        [isinstance(x, (int, float)) and not isinstance(x, bool) for x in factors]
    ):
        raise TypeError(
            f"{layer}(scale_factor=): expected a number or one for each dimension, got "
            f"{shown(factor)}. Write scale_factor=2.0"
        )
    if min(factors) <= 0:
        raise ValueError(f"{layer}(scale_factor=): must be positive, got {factor!r}")
    floats = tuple([float(x) for x in factors])
    return floats if isinstance(factor, (tuple, list)) else floats[0]


class Upsample(_Upsample):
    r"""Interpolates signals, images or volumes to another size.

    Args:
        mode: how: ``"nearest"``, ``"nearest-exact"`` or ``"area"`` for all of them, ``"linear"``
            for signals, ``"bilinear"`` or ``"bicubic"`` for images, ``"trilinear"`` for volumes;
            the field is ``method``.
        align_corners: whether the centres of the outermost pixels are aligned, instead of their
            outer edges; for the linear and cubic modes only.
        recompute_scale_factor: whether the factor used is that of the sizes, after rounding.

    Shape:
        - input: ``(N, C, L)``, ``(N, C, H, W)`` or ``(N, C, D, H, W)``
        - output: the same but for the spatial sizes, which are ``size``, or
          :math:`\lfloor size \cdot scale\_factor \rfloor`

    Example:
        >>> nn.Upsample(scale_factor=2)(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(
        self,
        size: int | tuple[int, ...] | None = None,
        scale_factor: Factors | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        super().__init__(size, scale_factor, mode, align_corners, recompute_scale_factor)


class UpsamplingNearest2d(_Upsample):
    """Interpolates images by the nearest pixel: ``Upsample`` of mode ``"nearest"``.

    Shape:
        - input: ``(N, C, H, W)``
        - output: ``(N, C, I, X)``

    Example:
        >>> nn.UpsamplingNearest2d(scale_factor=2)(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(size, scale_factor, "nearest", None, None)


class UpsamplingBilinear2d(_Upsample):
    """Interpolates images between pixels, corner on corner: ``Upsample`` of mode ``"bilinear"``.

    Shape:
        - input: ``(N, C, H, W)``
        - output: ``(N, C, I, X)``

    Example:
        >>> nn.UpsamplingBilinear2d(scale_factor=2)(torch.ones(1, 3, 4, 5)).shape
        torch.Size([1, 3, 8, 10])
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale_factor: float | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(size, scale_factor, "bilinear", True, None)
