"""What attention keeps of the tokens it has seen."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["KVCache"]


class KVCache(NamedTuple):
    """The keys and values of the tokens so far, in room for a fixed number of them.

    A value: attention takes one and returns the next. Its shapes never change, so a step that is
    compiled is compiled once.

    Attributes:
        key: of shape ``(N, num_kv_heads, max_len, head_dim)``.
        value: as ``key``.
        length: how many tokens they hold, an int64 tensor without dimensions.
    """

    key: Tensor
    value: Tensor
    length: Tensor

    def extended(self, key: Tensor, value: Tensor) -> KVCache:
        """With the keys and values of the tokens that come next.

        Args:
            key: of shape ``(N, num_kv_heads, L, head_dim)``.
            value: as ``key``.
        """
        positions = self.positions(key.shape[2])
        return KVCache(
            self.key.index_copy(2, positions, key),
            self.value.index_copy(2, positions, value),
            self.length + key.shape[2],
        )

    def positions(self, count: int) -> Tensor:
        """Where the next ``count`` tokens stand."""
        return self.length + torch.arange(count, device=self.length.device)

    def visible(self, count: int) -> Tensor:
        """Which places each of the last ``count`` tokens may see: itself and all before."""
        places = torch.arange(self.key.shape[2], device=self.length.device)
        return places <= self.positions(count).unsqueeze(-1) - count
