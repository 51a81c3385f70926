"""The keys and values that attention keeps while it decodes token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KVCache"]


class KVCache(NamedTuple):
    """The keys and values of the tokens so far, in tensors with room for a fixed number of them.

    ``MultiheadAttention.empty_cache`` makes one, and ``decode`` takes one and returns the next. Its
    shapes never change, so that a compiled step is compiled once.

    Attributes:
        key: of shape ``(N, num_kv_heads, max_len, head_dim)``.
        value: as ``key``.
        length: how many tokens they hold, an int64 tensor without dimensions.

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> attention = nn.MultiheadAttention(8, 2, batch_first=True).initialize(0).eval()
        >>> cache = attention.empty_cache(batch_size=1, max_len=16)
        >>> prompt, token = torch.ones(1, 5, 8), torch.ones(1, 1, 8)
        >>> out, cache = attention.decode(prompt, cache)
        >>> out, cache = attention.decode(token, cache)
        >>> out.shape, cache.length, cache.key.shape
        (torch.Size([1, 1, 8]), tensor(6), torch.Size([1, 2, 16, 4]))
        >>> cache = cache.extended(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))  # as decode does
        >>> cache.positions(2), cache.visible(1).sum()
        (tensor([7, 8]), tensor(7))
    """

    key: Tensor
    value: Tensor
    length: Tensor

    def extended(self, key: Tensor, value: Tensor) -> KVCache:
        """The cache with the keys and values of the next tokens added.

        Args:
            key: of shape ``(N, num_kv_heads, L, head_dim)``.
            value: as ``key``.

        Returns:
            A new cache, of the same shapes.
        """
        positions = self.positions(key.shape[2])
        return KVCache(
            self.key.index_copy(2, positions, key),
            self.value.index_copy(2, positions, value),
            self.length + key.shape[2],
        )

    def positions(self, count: int) -> Tensor:
        """The positions of the next ``count`` tokens, an int64 tensor of shape ``(count,)``."""
        return self.length + torch.arange(count, device=self.length.device)

    def visible(self, count: int) -> Tensor:
        """The causal mask of the last ``count`` tokens: each sees itself and all tokens before it.

        Args:
            count: how many tokens.

        Returns:
            A bool tensor of shape ``(count, max_len)``, true where a token sees another.
        """
        places = torch.arange(self.key.shape[2], device=self.length.device)
        return places <= self.positions(count).unsqueeze(-1) - count
