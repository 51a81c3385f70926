"""Rotary position embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax._compat.shards import beside
from parallax._errors.arguments import check_flags
from parallax.core.module import Module
from parallax.nn.arguments import between, positive
from parallax.nn.refusal import ends_with, refuse

__all__ = ["RotaryEmbedding"]


class RotaryEmbedding(Module):
    r"""Rotates pairs of features by angles proportional to the position.

    Feature pair :math:`i` of ``dim / 2`` at position :math:`m` is rotated by
    :math:`m \, \mathrm{base}^{-2 i / \mathrm{dim}}`, so that the product of a query and a key
    depends on how far apart they are.

    Args:
        dim: the size of the last dimension of the input, even.
        base: the wavelengths go from :math:`2 \pi` to nearly :math:`2 \pi \, \mathrm{base}`.
        interleaved: which features are a pair: neighbours, as in the paper; or by default the
            ``i``-th of each half, as in most published weights.

    Shape:
        - input: ``(*, L, dim)``
        - positions: ``(*, L)``, broadcast with the input; by default ``0, 1, ..., L - 1``
        - output: as the input

    Raises:
        TypeError: if ``dim`` is not an int, or ``base`` not a number.
        ValueError: if ``dim`` is odd or ``base`` not positive, or the input has another last
            dimension.

    Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
    equation 34.

    Example:
        >>> rotary = nn.RotaryEmbedding(2)
        >>> rotary(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([[1.0000, 0.0000],
                [0.5403, 0.8415]])
    """

    dim: int
    base: float
    interleaved: bool

    def __init__(self, dim: int, base: float = 10000.0, *, interleaved: bool = False) -> None:
        super().__init__()
        positive("RotaryEmbedding", dim=dim)
        if dim % 2:
            raise ValueError(f"RotaryEmbedding(dim=): must be even, got {dim}")
        between("RotaryEmbedding", 1e-6, base=base)
        check_flags("RotaryEmbedding", interleaved=interleaved)
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved

    def forward(self, input: Tensor, positions: Tensor | None = None) -> Tensor:
        """The input, each pair of features rotated by its angle."""
        if not self._fits(input):
            refuse(self, f"(*, L, {self.dim}) of floats", input)
        wide = torch.promote_types(input.dtype, torch.float32)
        if positions is None:
            positions = torch.arange(input.shape[-2], device=input.device)
        elif not ends_with(positions, input.shape[-2]):
            refuse(self, f"(*, {input.shape[-2]})", positions, "positions")
        steps = torch.arange(0, self.dim, 2, dtype=wide, device=input.device)
        angles = positions.to(wide).unsqueeze(-1) * self.base ** (-steps / self.dim)
        cos, sin = beside(angles.cos(), input), beside(angles.sin(), input)
        wider = input.to(wide)
        if self.interleaved:
            one, two = wider[..., 0::2], wider[..., 1::2]
            turned = torch.stack([one * cos - two * sin, two * cos + one * sin], -1).flatten(-2)
        else:
            one, two = wider.chunk(2, -1)
            turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
        return turned.to(input.dtype)

    def _fits(self, input: Any) -> bool:
        return ends_with(input, self.dim) and input.dim() > 1 and bool(input.is_floating_point())
