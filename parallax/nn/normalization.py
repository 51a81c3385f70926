"""Normalisation within each example."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._compat import shards
from parallax._errors.arguments import check_flags, shown
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import between, is_int, positive
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most, traced_forward
from parallax.nn.families import shown_as
from parallax.nn.moments import normalised, root_mean_divided, trailing_watched
from parallax.nn.refusal import ends_with, refuse, where

__all__ = ["CrossMapLRN2d", "GroupNorm", "LayerNorm", "LocalResponseNorm", "RMSNorm"]


def _trailing(layer: str, shape: Any) -> tuple[int, ...]:
    """The sizes of the last dimensions, one int standing for the last one."""
    sizes = (shape,) if is_int(shape) else shape
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not all(map(is_int, sizes)):
        raise TypeError(
            f"{layer}(normalized_shape=): expected an int or ints, got {shown(shape)}. "
            f"Write normalized_shape=8 or normalized_shape=(4, 8)"
        )
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{layer}(normalized_shape=): expected sizes of at least 1, got {shape!r}")
    return tuple(sizes)


class LayerNorm(Module):
    r"""Normalises the last dimensions.

    .. math:: y = (x - E[x]) (V[x] + \epsilon)^{-1/2} \gamma + \beta

    Args:
        normalized_shape: the sizes of the dimensions that are normalised together.
        eps: is added to the variance.
        elementwise_affine: whether there is a ``weight``, :math:`\gamma`, and a ``bias``,
            :math:`\beta`, of ``normalized_shape``.
        bias: whether there is a ``bias`` if ``elementwise_affine``.

    Shape:
        - input: ``(*, *normalized_shape)``
        - output: as the input

    Raises:
        TypeError: if ``normalized_shape`` is made of anything but ints.
        ValueError: if a size or ``eps`` is out of range, or the input has other last dimensions.

    Source: J. Ba, J. Kiros, G. Hinton, "Layer Normalization", 2016.

    Example:
        >>> nn.LayerNorm(2).initialize(0)(torch.tensor([[0.0, 2.0], [3.0, 5.0]])).round()
        tensor([[-1.,  1.],
                [-1.,  1.]])
    """

    normalized_shape: tuple[int, ...]
    eps: float
    elementwise_affine: bool
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = _trailing("LayerNorm", normalized_shape)
        between("LayerNorm", 0, eps=eps)
        check_flags("LayerNorm", elementwise_affine=elementwise_affine, bias=bias)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(shape, init.ones_, dtype=dtype) if elementwise_affine else None
        biased = elementwise_affine and bias
        self.bias = Parameter(shape, init.zeros_, dtype=dtype) if biased else None

    def forward(self, input: Tensor) -> Tensor:
        """The input, normalised over its last dimensions."""
        sizes, weight, bias, eps = self.normalized_shape, self.weight, self.bias, self.eps
        try:
            if in_plain_eager_code():
                return trailing_watched(eps)(torch.layer_norm(input, sizes, weight, bias, eps))
            if one_derivative_at_most(input, weight, bias):
                return torch.layer_norm(input, sizes, weight, bias, eps)
            _check_trailing(self, sizes, input)
            return normalised(input, (*range(-len(sizes), 0),), weight, bias, eps)[0]
        except (AttributeError, RuntimeError, TypeError):
            _check_trailing(self, self.normalized_shape, input)
            raise

    extra_repr = shown_as(torch.nn.LayerNorm)


class RMSNorm(Module):
    r"""Divides by the root mean square of the last dimensions.

    .. math:: y = x (E[x^2] + \epsilon)^{-1/2} \gamma

    Args:
        normalized_shape: the sizes of the dimensions that are normalised together.
        eps: is added to the mean square; by default the machine epsilon of the input's dtype.
        elementwise_affine: whether there is a ``weight``, :math:`\gamma`.
        dtype: of the weight; by default torch's default dtype.

    Shape:
        - input: ``(*, *normalized_shape)``
        - output: as the input

    Raises:
        TypeError: if ``normalized_shape`` is made of anything but ints.
        ValueError: if a size or ``eps`` is out of range, or the input has other last dimensions.

    Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.

    Example:
        >>> nn.RMSNorm(2).initialize(0)(torch.tensor([[1.0, -1.0], [5.0, 5.0]]))
        tensor([[ 1., -1.],
                [ 1.,  1.]])
    """

    normalized_shape: tuple[int, ...]
    eps: float | None
    elementwise_affine: bool
    weight: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = _trailing("RMSNorm", normalized_shape)
        if eps is not None:
            between("RMSNorm", 0, eps=eps)
        check_flags("RMSNorm", elementwise_affine=elementwise_affine)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self.weight = Parameter(shape, init.ones_, dtype=dtype) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """The input, divided by the root mean square over its last dimensions."""
        try:
            # Torch's stand-ins have no second forward derivative of the kernel, and where features
            # are cut it writes into a mean that waits for its sum.
            if traced_forward() or shards.may_be_distributed(x):
                return self._by_operators(x)
            return torch.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        except (AttributeError, RuntimeError, TypeError):
            _check_trailing(self, self.normalized_shape, x)
            raise

    def _by_operators(self, x: Tensor) -> Tensor:
        _check_trailing(self, self.normalized_shape, x)
        out = root_mean_divided(x, (*range(-len(self.normalized_shape), 0),), self.eps)
        return out if self.weight is None else out * self.weight

    extra_repr = shown_as(torch.nn.RMSNorm)


def _check_trailing(layer: Any, sizes: tuple[int, ...], input: Any) -> None:
    if not ends_with(input, *sizes):
        refuse(layer, f"(*, {', '.join(map(str, sizes))})", input)


class GroupNorm(Module):
    r"""Normalises each group of channels of each example.

    .. math:: y = (x - E[x]) (V[x] + \epsilon)^{-1/2} \gamma + \beta

    Args:
        num_groups: how many groups the channels are divided into.
        num_channels: C; a multiple of ``num_groups``.
        eps: is added to the variance.
        affine: whether each channel has a ``weight``, :math:`\gamma`, and a ``bias``,
            :math:`\beta`.
        bias: whether there is a ``bias`` if ``affine``.

    Shape:
        - input: ``(N, C, *)``
        - output: as the input

    Raises:
        ValueError: if a number is out of range, the channels cannot be divided, the input has
            another number of them, or a group is a single value.

    Source: Y. Wu, K. He, "Group Normalization", ECCV 2018.

    Example:
        >>> nn.GroupNorm(2, 6).initialize(0)(torch.ones(5, 6, 3, 3)).shape
        torch.Size([5, 6, 3, 3])
    """

    num_groups: int
    num_channels: int
    eps: float
    affine: bool
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive("GroupNorm", num_groups=num_groups, num_channels=num_channels)
        between("GroupNorm", 0, eps=eps)
        check_flags("GroupNorm", affine=affine, bias=bias)
        if num_channels % num_groups:
            raise ValueError(
                f"GroupNorm(num_channels=): {num_channels} channels cannot be divided into "
                f"{num_groups} groups"
            )
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        shape = (num_channels,)
        self.weight = Parameter(shape, init.ones_, dtype=dtype) if affine else None
        self.bias = Parameter(shape, init.zeros_, dtype=dtype) if affine and bias else None

    def forward(self, input: Tensor) -> Tensor:
        """The input, each group of channels normalised."""
        try:
            if self.weight is None and input.shape[1] != self.num_channels:
                refuse(self, f"(N, {self.num_channels}, *)", input)
            # Torch's stand-ins have no such derivative of the kernel, and of a part of a batch it
            # is told the size of the whole.
            if traced_forward() or shards.may_be_distributed(input):
                return self._by_operators(input)
            return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            self._check(input)
            raise

    def _by_operators(self, input: Tensor) -> Tensor:
        self._check(input)
        split = self.num_groups, self.num_channels // self.num_groups
        groups = input.reshape(input.shape[0], *split, *input.shape[2:])
        shape = *split, *[1] * (input.dim() - 2)
        weight, bias = [None if x is None else x.view(shape) for x in (self.weight, self.bias)]
        return normalised(groups, (*range(2, groups.dim()),), weight, bias, self.eps)[0].flatten(
            1, 2
        )

    def _check(self, input: Any) -> None:
        shape = input.shape if isinstance(input, Tensor) else torch.Size()
        if len(shape) < 2 or shape[1] != self.num_channels:
            refuse(self, f"(N, {self.num_channels}, *)", input)
        if shape.numel() == self.num_groups:
            raise ValueError(
                f"{where(self)}: expected more than one value per group to take statistics of, "
                f"got input of shape {tuple(shape)}"
            )

    extra_repr = shown_as(torch.nn.GroupNorm)


class LocalResponseNorm(Module):
    r"""Divides by a power of the mean square of the neighbouring channels.

    .. math:: y_c = x_c (k + \frac{\alpha}{n} \sum_{|c' - c| \le n/2} x_{c'}^2)^{-\beta}

    Args:
        size: how many channels are neighbours, n.
        alpha: the factor of their mean square.
        beta: the exponent.
        k: is added to that.

    Shape:
        - input: ``(N, C, *)``, of at least three dimensions
        - output: as the input

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``size`` is less than one, or the input has fewer dimensions.

    Source: A. Krizhevsky, I. Sutskever, G. Hinton, "ImageNet Classification with Deep
    Convolutional Neural Networks", NeurIPS 2012.

    Example:
        >>> nn.LocalResponseNorm(1, alpha=1.0, beta=0.5, k=3.0)(torch.ones(1, 2, 1))
        tensor([[[0.5000],
                 [0.5000]]])
    """

    size: int
    alpha: float
    beta: float
    k: float

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        positive(type(self).__name__, size=size)
        between(type(self).__name__, -inf, alpha=alpha, beta=beta, k=k)
        self.size = size
        self.alpha = alpha
        self.beta = beta
        self.k = k

    def forward(self, input: Tensor) -> Tensor:
        """The input, divided by a power of the mean square of the neighbouring channels."""
        try:
            # Fewer kernels than F.local_response_norm, and more dtypes: one pooling for any shape.
            size, shape = self.size, input.shape
            energy = F.avg_pool2d((input * input).flatten(2), (size, 1), 1, (size // 2, 0))
            if (
                size % 2 == 0
            ):  # the window reaches further up than down, which gives one row too many
                energy = energy[:, : shape[1]]
            return input / energy.view(shape).mul(self.alpha).add(self.k).pow(self.beta)
        except (AttributeError, IndexError, RuntimeError, TypeError):
            given: Any = input
            if not isinstance(given, Tensor) or given.dim() < 3:
                refuse(self, "(N, C, *) with at least three dimensions", given)
            if not given.numel():  # the pooling does not take them
                return given
            raise

    extra_repr = shown_as(torch.nn.LocalResponseNorm)


class CrossMapLRN2d(LocalResponseNorm):
    r"""``LocalResponseNorm`` of images, with an odd number of neighbours.

    In torch this is another implementation, which never lets go of the first channel: from channel
    ``size // 2 + 1`` on its numbers are not those of the formula, and its gradient not that of its
    numbers (2.14). Here they are those of the formula.

    Shape:
        - input: ``(N, C, H, W)``

    Raises:
        ValueError: if ``size`` is even, or the input has another number of dimensions.

    Example:
        >>> nn.CrossMapLRN2d(1, alpha=1.0, beta=0.5, k=3.0)(torch.ones(1, 1, 1, 2))
        tensor([[[[0.5000, 0.5000]]]])
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__(size, alpha, beta, k)
        if size % 2 == 0:
            raise ValueError(
                f"CrossMapLRN2d(size=): must be odd, got {size}. "
                f"Write size={size + 1}, or nn.LocalResponseNorm({size})"
            )

    def forward(self, input: Tensor) -> Tensor:
        """The images, divided by a power of the mean square of the neighbouring channels."""
        given: Any = input
        if not isinstance(given, Tensor) or given.dim() != 4:
            refuse(self, "(N, C, H, W)", given)
        return super().forward(given)

    extra_repr = shown_as(torch.nn.CrossMapLRN2d)
