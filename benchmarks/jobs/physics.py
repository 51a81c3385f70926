"""A physics-informed network: the gradient of a loss that holds a Laplacian, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import parallax
from benchmarks.harness import Question
from benchmarks.jobs.way import Step, race
from benchmarks.laplacian import WIDTH, by_hand, reverse_twice, value_at
from parallax import func, nn, optim, tree

RATE = 1e-3

Gradient = Callable[[Sequence[Tensor], Tensor], tuple[Sequence[Tensor], Tensor]]


def questions(quick: bool) -> Iterator[Question]:
    for count in (64,) if quick else (256, 2048):
        torch.manual_seed(0)
        net = nn.MLP((2, WIDTH, WIDTH, 1), torch.tanh).initialize(0)
        points = torch.rand(count, 2)
        name = f"a physics-informed network at {count} points"
        ways = {
            "double backward by hand, fused Adam": partial(_peer, net, points, by_hand),
            "parallax func.laplacian": partial(_ours, net, points),
            "torch.func, fused Adam": partial(_peer, net, points, reverse_twice),
        }
        yield from race(f"{name}, eager", ways, {"parallax func.laplacian": 0.9})
        if quick:
            continue
        twice = torch.compile(reverse_twice, fullgraph=True)
        ways = {
            "torch.func, compiled, fused Adam": partial(_peer, net, points, twice),
            "parallax.compile": partial(_compiled, net, points),
            "parallax.compile, donated": partial(_compiled, net, points, donate=("net", "state")),
        }
        yield from race(f"{name}, compiled", ways, dict.fromkeys([*ways][1:], 0.45))


def _peer(net: Any, points: Tensor, gradient: Gradient) -> Step:
    leaves = [leaf.clone() for leaf in tree.leaves(net)]
    optimizer = torch.optim.Adam(leaves, RATE, fused=True)

    def step() -> Tensor:
        grads, loss = gradient(leaves, points)
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()
        return loss

    return step


def _loss(net: Any, points: Tensor) -> Tensor:
    found: Tensor = func.vmap(func.laplacian(value_at, argnums=1), in_dims=(None, 0))(net, points)
    return (found - 1).square().mean()


def _ours(net: Any, points: Tensor) -> Step:
    net, opt = tree.map(torch.clone, net), optim.Adam(RATE)
    state = opt.init(net)

    def step() -> Tensor:
        nonlocal net, state
        grads, loss = func.grad_and_value(_loss)(net, points)
        net, state = opt.step(net, grads, state)
        return loss

    return step


def _compiled(net: Any, points: Tensor, **options: Any) -> Step:
    net, opt = tree.map(torch.clone, net), optim.Adam(RATE)
    state = opt.init(net)

    def train(net: Any, state: Any, points: Tensor) -> Any:
        grads, loss = func.grad_and_value(_loss)(net, points)
        return *opt.step(net, grads, state), loss

    whole: Any = parallax.compile(train, **options)

    def step() -> Tensor:
        nonlocal net, state
        net, state, loss = whole(net, state, points)
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step
