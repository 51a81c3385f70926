"""The partial inverse of max pooling, and max pooling with windows of random steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import random
from parallax._errors.arguments import check_flags
from parallax.nn.arguments import Sizes, per_dim
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, refuse, where
from parallax.nn.spatial import Spatial, refuse_sizes, refuse_spatial

__all__ = [
    "FractionalMaxPool2d", "FractionalMaxPool3d", "MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d",
]  # fmt: skip


class _MaxUnpool(Spatial):
    """What unpooling over one, two and three dimensions shares.

    Args:
        kernel_size: of the pool: an int or a tuple of {one}, as all sizes here.
        stride: of the pool; by default the size of the window.
        padding: of the pool.

    Shape:
        - indices: as the input, and as ``MaxPool{n}d(..., return_indices=True)`` returns them
        - output: ``(N, C, *)`` or ``(C, *)``, of the least sizes that the pool may have had, or
          ``output_size``

    Raises:
        TypeError: if an argument is of another type, or an input is not a tensor.
        ValueError: if an argument is out of range, or an input is of another shape.
    """

    unpool: ClassVar[Callable[..., Tensor]]

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]

    def __init__(self, kernel_size: Sizes, stride: Sizes | None = None, padding: Sizes = 0) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        self.kernel_size = per_dim(name, "kernel_size", kernel_size, dims)
        self.stride = per_dim(name, "stride", kernel_size if stride is None else stride, dims)
        self.padding = per_dim(name, "padding", padding, dims, least=0)

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """A tensor with each number at its index, and zero everywhere else."""
        try:
            return self.unpool(
                input, indices, self.kernel_size, self.stride, self.padding, output_size
            )
        except ValueError as error:
            raise ValueError(f"{where(self)}: {error}") from None
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            self._refuse_both(input, indices)
            refuse_sizes(self, output_size)
            name_in(error, self)
            raise

    def _refuse_both(self, input: Any, indices: Any) -> None:
        """Raises if the inputs are of other shapes."""
        self._refuse(input)
        if not isinstance(indices, Tensor) or indices.shape != input.shape:
            refuse(self, f"({', '.join(map(str, input.shape))})", indices, "indices")

    extra_repr = shown_as(torch.nn.MaxUnpool1d)


class _FractionalMaxPool(Spatial):
    """What fractional max pools over two and three dimensions share.

    Args:
        kernel_size: the size of the window: an int or a tuple of {one}, as all sizes here.
        output_size: how many windows; or
        output_ratio: how many windows, as a fraction of the input's size.
        return_indices: return a pair, with the flat index of each number in its channel.

    Shape:
        - output: ``(N, C, *)`` or ``(C, *)``

    Raises:
        RuntimeError: if no rng was handed to the tree.

    Source: B. Graham, "Fractional Max-Pooling", 2014.
    """

    pool: ClassVar[Callable[..., Any]]

    kernel_size: tuple[int, ...]
    output_size: tuple[int, ...] | None
    output_ratio: tuple[float, ...] | None
    return_indices: bool

    def __init__(
        self,
        kernel_size: Sizes,
        output_size: Sizes | None = None,
        output_ratio: float | tuple[float, ...] | None = None,
        return_indices: bool = False,
    ) -> None:
        super().__init__()
        name, dims = type(self).__name__, self.dims
        if (output_size is None) == (output_ratio is None):
            raise ValueError(f"{name}: give either output_size or output_ratio")
        self.kernel_size = per_dim(name, "kernel_size", kernel_size, dims)
        self.output_size = (
            None if output_size is None else per_dim(name, "output_size", output_size, dims)
        )
        self.output_ratio = None if output_ratio is None else _ratios(name, output_ratio, dims)
        check_flags(name, return_indices=return_indices)
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Any:
        """The largest number of each window; windows are drawn from ``self.rng`` in every mode."""
        refuse_spatial(self, input, self.dims, least=self.kernel_size)
        batch = input.shape[: -self.dims] if input.dim() > self.dims + 1 else (1, input.shape[0])
        key = random.as_key(self.rng)
        shares = random.uniform(key, (*batch, self.dims), dtype=input.dtype, device=input.device)
        return self.pool(
            input,
            self.kernel_size,
            self.output_size,
            self.output_ratio,
            self.return_indices,
            shares,
        )

    extra_repr = shown_as(torch.nn.FractionalMaxPool2d)


def _ratios(layer: str, ratio: Any, dims: int) -> tuple[float, ...]:
    ratios = tuple(ratio) if isinstance(ratio, (tuple, list)) else (ratio,) * dims
    if len(ratios) != dims or not all([isinstance(share, float) for share in ratios]):
        raise TypeError(
            f"{layer}(output_ratio=): expected a float or {dims} of them, got {ratio!r}"
        )
    if not all([0 < share < 1 for share in ratios]):
        raise ValueError(f"{layer}(output_ratio=): must be between 0 and 1, got {ratio!r}")
    return ratios


class MaxUnpool1d(_MaxUnpool, init=False):
    """The partial inverse of ``MaxPool1d``: numbers at their indices, zeros elsewhere.

    Example:
        >>> most, indices = nn.MaxPool1d(2, return_indices=True)(torch.ones(2, 4))
        >>> nn.MaxUnpool1d(2)(most, indices).shape
        torch.Size([2, 4])
    """

    dims = 1
    unpool = staticmethod(F.max_unpool1d)


class MaxUnpool2d(_MaxUnpool, init=False):
    """The partial inverse of ``MaxPool2d``: numbers at their indices, zeros elsewhere.

    Example:
        >>> most, indices = nn.MaxPool2d(2, return_indices=True)(torch.ones(2, 4, 4))
        >>> nn.MaxUnpool2d(2)(most, indices).shape
        torch.Size([2, 4, 4])
    """

    dims = 2
    unpool = staticmethod(F.max_unpool2d)


class MaxUnpool3d(_MaxUnpool, init=False):
    """The partial inverse of ``MaxPool3d``: numbers at their indices, zeros elsewhere.

    Example:
        >>> most, indices = nn.MaxPool3d(2, return_indices=True)(torch.ones(2, 4, 4, 4))
        >>> nn.MaxUnpool3d(2)(most, indices).shape
        torch.Size([2, 4, 4, 4])
    """

    dims = 3
    unpool = staticmethod(F.max_unpool3d)


class FractionalMaxPool2d(_FractionalMaxPool, init=False):
    """The largest number of each window of images, where the windows' steps are random.

    Example:
        >>> nn.FractionalMaxPool2d(2, output_ratio=0.5).train(0)(torch.ones(2, 8, 8)).shape
        torch.Size([2, 4, 4])
    """

    dims = 2
    pool = staticmethod(F.fractional_max_pool2d)


class FractionalMaxPool3d(_FractionalMaxPool, init=False):
    """The largest number of each window of volumes, where the windows' steps are random.

    Example:
        >>> nn.FractionalMaxPool3d(2, output_ratio=0.5).train(0)(torch.ones(2, 8, 8, 8)).shape
        torch.Size([2, 4, 4, 4])
    """

    dims = 3
    pool = staticmethod(F.fractional_max_pool3d)
