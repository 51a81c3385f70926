"""The model that the tests of this folder spread over processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax import Module, nn


class Attention(Module):
    q: nn.Linear
    k: nn.Linear
    o: nn.Linear

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.o = (nn.Linear(width, width) for _ in range(3))


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
        y: Tensor = self.down(self.up(self.norm(x)).tanh())
        return x + y


class Net(Module):
    """Blocks between an embedding and a head."""

    embed: nn.Embedding
    blocks: tuple[Block, ...]
    head: nn.Linear

    def __init__(self, width: int = 8, characters: int = 12, count: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.blocks = tuple(Block(width) for _ in range(count))
        self.head = nn.Linear(width, 3)


class Stacked(Module):
    """As ``Net``, with its blocks as one."""

    embed: nn.Embedding
    blocks: nn.Stack

    def __init__(self, width: int = 8, count: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.blocks = nn.Stack(Block(width), count)


TENSOR_PARALLEL = {
    "**.attn.[qk].*": 0, "**.attn.o.weight": 1, "**.up.*": 0, "**.down.weight": 1,
}  # fmt: skip


def net(**sizes: int) -> Any:
    return Net(**sizes).initialize(0)
