"""The physical limits: each operation by the calls of torch that it cannot do without.

No tree, no module, no checks: flat lists of tensors and straight lines of code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import HEADS, NnChain, NnGPT, NnMLP, attend
from benchmarks.residual import NnResNet
from parallax import Module
from parallax._compat import kernels

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
    if isinstance(model, NnResNet):
        return partial(resnet, [buffer.clone() for buffer in model.buffers()])
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


def resnet(buffers: list[Tensor], parameters: list[Tensor], x: Tensor) -> Tensor:
    """A residual network in training; the running statistics are written."""
    weights, statistics = iter(parameters), iter(buffers)

    def normed(x: Tensor) -> Tensor:
        mean, var, _ = next(statistics), next(statistics), next(statistics)
        return F.batch_norm(x, mean, var, next(weights), next(weights), True, 0.1)

    x = torch.relu(normed(F.conv2d(x, next(weights), padding=1)))
    for stride in (1, 2, 2):
        inner = torch.relu(normed(F.conv2d(x, next(weights), None, stride, 1)))
        inner = normed(F.conv2d(inner, next(weights), None, 1, 1))
        if stride > 1:
            x = normed(F.conv2d(x, next(weights), None, stride))
        x = torch.relu(inner + x)
    return F.linear(x.mean((2, 3)), next(weights), next(weights))


def adamw_of(leaves: list[Tensor], rate: float) -> Callable[[Sequence[Tensor]], None]:
    """AdamW's step in place: torch's fused kernel on flat lists."""
    m, v = [[torch.zeros_like(leaf) for leaf in leaves] for _ in range(2)]
    age = torch.zeros((), device=leaves[0].device)

    def move(grads: Sequence[Tensor]) -> None:
        with torch.no_grad():
            age.add_(1)
            kernels.fused_adamw(
                leaves, list(grads), m, v, [], [age] * len(leaves), lr=rate, beta1=0.9, beta2=0.999,
                weight_decay=1e-2, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip

    return move


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


def objects_of(module: Module) -> Callable[[Sequence[Any]], Any]:
    """Objects with the attributes of a tree's modules, around leaves: one line for each.

    They are of a plain class: no structure, no check, nothing that flattens them again.
    """
    lines: list[str] = []
    counter = count()
    made = _written(module, lines, counter)
    source = "\n    ".join(["def build(leaves):", *lines, f"return {made}"])
    scope: dict[str, Any] = {"new": object.__new__, "Plain": Plain}
    exec(source, scope)
    return scope["build"]  # type: ignore[no-any-return]  # made by the exec above


class Plain:
    """An object with attributes."""


def leaves_of(node: Any) -> list[Tensor]:
    """The tensors below such objects."""
    if isinstance(node, Tensor):
        return [node]
    inner = node if isinstance(node, tuple) else vars(node).values()
    inside = (tuple, Tensor, Plain)
    return [leaf for each in inner if isinstance(each, inside) for leaf in leaves_of(each)]


def _written(node: Any, lines: list[str], counter: Iterator[int]) -> str:
    """The expression of a node whose modules are made in `lines`; leaves come in their order."""
    if isinstance(node, tuple):
        return f"({''.join(_written(item, lines, counter) + ', ' for item in node)})"
    if isinstance(node, Tensor):
        return f"leaves[{next(counter)}]"
    if not isinstance(node, Module):
        return repr(node)
    attributes = {
        name: _written(getattr(node, name), lines, counter) for name in type(node).__layout__.fields
    }
    name = f"o{len(lines)}"
    lines.append(f"{name} = new(Plain)")
    lines.extend(f"{name}.{key} = {value}" for key, value in attributes.items())
    return name


def map_of(leaves: list[Any], fn: Callable[[Any], Any]) -> Callable[[], list[Any]]:
    """A map without a tree: a comprehension over the flat list."""
    return lambda: [fn(leaf) for leaf in leaves]
