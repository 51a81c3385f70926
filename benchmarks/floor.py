"""The physical limits: each operation by the calls of torch that it cannot do without.

No tree, no module, no checks: flat lists of tensors and straight lines of code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import HEADS, NnChain, NnGPT, NnMLP, attend

Forward = Callable[[Tensor], Tensor]


def forward_of(model: nn.Module) -> Forward:
    """The forward of one of the benchmarks' models, on its own parameters."""
    parameters = [value.detach() for value in model.parameters()]
    straight = line_of(model)
    return lambda x: straight(parameters, x)


def line_of(model: nn.Module) -> Callable[[list[Tensor], Tensor], Tensor]:
    """The forward of a model as a function of its flat list of parameters."""
    if isinstance(model, NnMLP):
        return mlp
    if isinstance(model, NnChain):
        return chain
    assert isinstance(model, NnGPT)
    return gpt


def mlp(parameters: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = parameters
    return F.linear(torch.relu(F.linear(torch.relu(F.linear(x, w1, b1)), w2, b2)), w3, b3)


def chain(parameters: list[Tensor], x: Tensor) -> Tensor:
    pairs = iter(parameters)
    for weight, bias in zip(pairs, pairs, strict=True):
        x = F.linear(x, weight, bias)
    return x


def gpt(parameters: list[Tensor], tokens: Tensor) -> Tensor:
    position, embedding, *blocks, scale, shift, head, head_bias = parameters
    x = F.embedding(tokens, embedding) + position[: tokens.shape[-1]]
    size = scale.shape
    for i in range(0, len(blocks), 12):
        n1, m1, qkv, qkv_bias, out, out_bias, n2, m2, up, up_bias, down, down_bias = blocks[
            i : i + 12
        ]
        packed = F.linear(F.layer_norm(x, size, n1, m1), qkv, qkv_bias)
        x = x + F.linear(attend(packed, HEADS), out, out_bias)
        inner = F.gelu(F.linear(F.layer_norm(x, size, n2, m2), up, up_bias))
        x = x + F.linear(inner, down, down_bias)
    return F.linear(F.layer_norm(x, size, scale, shift), head, head_bias)


def gradient_of(
    model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor
) -> Callable[[], tuple[tuple[Tensor, ...], Tensor]]:
    """The gradients and the loss of a model's output: autograd's tape over a flat list."""
    parameters = [value.detach() for value in model.parameters()]
    straight = line_of(model)

    def run() -> tuple[tuple[Tensor, ...], Tensor]:
        leaves = [value.detach().requires_grad_() for value in parameters]
        value = loss(straight(leaves, x))
        return torch.autograd.grad(value, leaves), value.detach()

    return run


def map_of(leaves: list[Any], fn: Callable[[Any], Any]) -> Callable[[], list[Any]]:
    """A map without a tree: a comprehension over the flat list."""
    return lambda: [fn(leaf) for leaf in leaves]
