"""The models that are measured, each in three forms that hold the very same tensors.

A model is built as an `nn.Module`; `mirror` makes a Parallax module of it, `as_dict` a nested dict.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Module, Parameter

T = TypeVar("T")

WIDTH = 64
VOCABULARY = 64
CONTEXT = 32
HEADS = 4

# Blocks in a GPT with 150 leaves (112 modules), 1,002 (751) and 10,002 (7,501).
BLOCKS = {150: 12, 1_002: 83, 10_002: 833}


class Linear(Module):
    weight: Parameter
    bias: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class LayerNorm(Module):
    weight: Parameter
    bias: Parameter
    eps: float = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Embedding(Module):
    weight: Parameter

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)


class MLP(Module):
    first: Linear
    second: Linear
    third: Linear

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


class Chain(Module):
    layers: tuple[Linear, ...]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Attention(Module):
    qkv: Linear
    out: Linear
    heads: int = HEADS

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(self.qkv(x), self.heads))


class FeedForward(Module):
    up: Linear
    down: Linear

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Block(Module):
    norm1: LayerNorm
    attention: Attention
    norm2: LayerNorm
    feed: FeedForward

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class GPT(Module):
    position: Parameter
    tokens: Embedding
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Linear

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.position[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def attend(qkv: Tensor, heads: int) -> Tensor:
    """Causal attention on packed queries, keys and values."""
    apart = qkv.view(*qkv.shape[:-1], 3, heads, -1).transpose(-4, -2)
    q, k, v = apart.unbind(-3)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(-3, -2).flatten(-2)


class NnMLP(nn.Module):
    def __init__(self, sizes: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.first = nn.Linear(sizes[0], sizes[1])
        self.second = nn.Linear(sizes[1], sizes[2])
        self.third = nn.Linear(sizes[2], sizes[3])

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


class NnChain(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class NnAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attend(self.qkv(x), HEADS))


class NnFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class NnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = NnAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.feed = NnFeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed(self.norm2(x))


class NnGPT(nn.Module):
    def __init__(self, blocks: int, width: int = WIDTH) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(CONTEXT, width))
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(NnBlock(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.position[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


_TWINS: dict[type[nn.Module], type[Module]] = {
    nn.Linear: Linear,
    nn.LayerNorm: LayerNorm,
    nn.Embedding: Embedding,
    NnMLP: MLP,
    NnChain: Chain,
    NnAttention: Attention,
    NnFeedForward: FeedForward,
    NnBlock: Block,
    NnGPT: GPT,
}


def mirror(model: nn.Module) -> Module:
    """Make the Parallax module that holds the same tensors, without requires_grad."""
    fields: dict[str, object] = {
        name: value.detach() for name, value in model.named_parameters(recurse=False)
    }
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            fields[name] = tuple(mirror(member) for member in child)
        else:
            fields[name] = mirror(child)
    return _TWINS[type(model)](**fields)


def as_dict(node: object) -> object:
    """Make nested dicts of a Parallax module: the same names, the same tensors, no classes."""
    if isinstance(node, tuple):
        return tuple(map(as_dict, node))
    if isinstance(node, Module):
        children = (
            (k, v) for k, v in _fields(node).items() if isinstance(v, Tensor | Module | tuple)
        )
        return {name: as_dict(child) for name, child in children}
    return node


def rebuild(node: T) -> T:
    """Construct a module anew, node by node, around the very tensors that it holds."""
    if isinstance(node, tuple):
        return cast(T, tuple(map(rebuild, node)))
    if isinstance(node, Module):
        return type(node)(**{name: rebuild(value) for name, value in _fields(node).items()})
    return node


def _fields(node: Module) -> dict[str, object]:
    return {name: getattr(node, name) for name in type(node).__layout__.fields}
