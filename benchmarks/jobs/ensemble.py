"""An ensemble of MLPs, trained as one: the gradient of each member, and Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from benchmarks.harness import Question
from benchmarks.jobs.way import Step, race
from parallax import func, nn, optim, tree

SIZES, BATCH, RATE = (64, 64, 64, 10), 64, 1e-3


def questions(quick: bool) -> Iterator[Question]:
    for members in (4,) if quick else (16, 64):
        torch.manual_seed(0)
        nets = tree.stack([nn.MLP(SIZES, torch.relu).initialize(k) for k in range(members)])
        data = torch.randn(BATCH, SIZES[0]), torch.randint(SIZES[-1], (BATCH,))
        name = f"an ensemble of {members} MLPs"
        ways: dict[str, Callable[[], Step]] = {
            "torch.func, fused Adam": partial(_functional, nets, data),
            "baddbmm by hand, fused Adam": partial(_by_hand, nets, data),
            "parallax": partial(_ours, nets, data, donate=False),
            "parallax, donated": partial(_ours, nets, data, donate=True),
        }
        yield from race(f"{name}, eager", ways, {"parallax": 1.0, "parallax, donated": 1.0})
        if quick:
            continue
        ways = {
            "torch.func, compiled, fused Adam": partial(_functional, nets, data, torch.compile),
            "baddbmm by hand, compiled, fused Adam": partial(_by_hand, nets, data, torch.compile),
            "parallax.compile": partial(_compiled, nets, data),
            "parallax.compile, donated": partial(_compiled, nets, data, donate=("nets", "state")),
        }
        yield from race(f"{name}, compiled", ways, dict.fromkeys([*ways][2:], 0.55))


Data = tuple[Tensor, Tensor]


def _functional(nets: Any, data: Data, wrap: Callable[[Any], Any] = lambda f: f) -> Step:
    leaves = [leaf.clone() for leaf in tree.leaves(nets)]
    optimizer = torch.optim.Adam(leaves, RATE, fused=True)

    def loss(leaves: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        for k in range(0, len(leaves) - 2, 2):
            x = torch.relu(F.linear(x, leaves[k], leaves[k + 1]))
        return F.cross_entropy(F.linear(x, leaves[-2], leaves[-1]), y)

    gradients = wrap(torch.func.vmap(torch.func.grad_and_value(loss), (0, None, None)))

    def step() -> Tensor:
        grads, losses = gradients(tuple(leaves), *data)
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()
        return losses.mean()  # type: ignore[no-any-return]  # of torch.func

    return step


def _by_hand(nets: Any, data: Data, wrap: Callable[[Any], Any] = lambda f: f) -> Step:
    leaves = [leaf.clone().requires_grad_() for leaf in tree.leaves(nets)]
    optimizer = torch.optim.Adam(leaves, RATE, fused=True)

    def sum_of_losses(leaves: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        members = len(leaves[0])
        x = x.expand(members, *x.shape)
        for k in range(0, len(leaves), 2):
            x = torch.baddbmm(leaves[k + 1].unsqueeze(1), x, leaves[k].mT)
            x = torch.relu(x) if k < len(leaves) - 2 else x
        losses = F.cross_entropy(x.flatten(0, 1), y.repeat(members), reduction="sum")
        return losses / len(y)

    forward = wrap(sum_of_losses)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = forward(leaves, *data)
        loss.backward()
        optimizer.step()
        return loss.detach() / len(leaves[0])  # type: ignore[no-any-return]  # may be compiled

    return step


def _loss(net: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(net(x), y)
    return loss, loss.detach()


def _gradients(nets: Any, x: Tensor, y: Tensor) -> tuple[Any, Tensor]:
    found: tuple[Any, Tensor] = func.ensemble_grad(_loss, has_aux=True)(nets, x, y)
    return found


def _ours(nets: Any, data: Data, *, donate: bool) -> Step:
    nets, opt = tree.map(torch.clone, nets), optim.Adam(RATE)
    state = opt.init(nets)

    def step() -> Tensor:
        nonlocal nets, state
        grads, losses = _gradients(nets, *data)
        nets, state = opt.step(nets, grads, state, donate=donate)
        return losses.mean()

    return step


def _compiled(nets: Any, data: Data, **options: Any) -> Step:
    nets, opt = tree.map(torch.clone, nets), optim.Adam(RATE)
    state = opt.init(nets)

    def train(nets: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        grads, losses = _gradients(nets, x, y)
        return *opt.step(nets, grads, state), losses.mean()

    whole: Any = parallax.compile(train, **options)

    def step() -> Tensor:
        nonlocal nets, state
        nets, state, loss = whole(nets, state, *data)
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step
