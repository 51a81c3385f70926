"""A transformer that the tests of this folder train, and how it is spread."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import Module, nn


class Attention(Module):
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        layers = self.q, self.k, self.v
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in layers)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(Module):
    norm: nn.LayerNorm
    attn: Attention
    up: nn.Linear
    down: nn.Linear

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = Attention(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        y: Tensor = self.down(F.gelu(self.up(x)))
        return x + y


class Transformer(Module):
    embed: nn.Embedding
    blocks: tuple[Block, ...] | nn.Stack
    head: nn.Linear

    def __init__(
        self, width: int = 16, count: int = 2, words: int = 12, *, stacked: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        blocks = [Block(width) for _ in range(1 if stacked else count)]
        self.blocks = nn.Stack(blocks[0], count) if stacked else tuple(blocks)
        self.head = nn.Linear(width, words)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes)
        blocks = (self.blocks,) if isinstance(self.blocks, nn.Stack) else self.blocks
        for block in blocks:
            x = block(x)
        return self.head(x)


def small(count: int = 2, *, stacked: bool = False) -> Any:
    """A declared one, whose head does not divide."""
    return Transformer(8, count, 3, stacked=stacked)


def loss(model: Any, codes: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(codes).flatten(0, 1), following.flatten())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(12, (8, 9), generator=generator)
    return codes[:, :-1].contiguous(), codes[:, 1:].contiguous()


ROWS = {
    "**.attn.[qkv].*": 0, "**.attn.o.weight": 1, "**.up.*": 0, "**.down.weight": 1,
}  # fmt: skip
"""Tensor-parallel rules."""
