"""A transformer that predicts the next token: gradient and AdamW."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from benchmarks.harness import Question
from benchmarks.jobs import starting
from benchmarks.jobs.way import Step, race
from benchmarks.models import CONTEXT, VOCABULARY, Embedding, LayerNorm, Linear, NnGPT, mirror
from parallax import Module, Parameter, func, nn, optim, tree

LAYERS, BATCH, RATE = 6, 8, 1e-3
EVERY = 4  # gradients to a step, where they are accumulated

STARTS = {
    "nn.Module, compiled, fused AdamW": "nn",
    "parallax.compile": "whole",
    "parallax.compile, donated": "donated",
    "parallax.compile, donated, nn.Stack": "stack",
}
FIRST, SECOND = (0.9, 0.9, 0.4), (1.0, 1.0, 0.6)  # what the last three must not exceed


def questions(quick: bool) -> Iterator[Question]:
    for width in (64,) if quick else (64, 256):
        torch.manual_seed(0)
        model = NnGPT(1 if quick else LAYERS, width)
        x, y = torch.randint(VOCABULARY, (2, BATCH, CONTEXT))
        name = f"a {len(model.blocks)}-layer language model of width {width}"
        ways = {
            "nn.Module, fused AdamW": partial(_nn, model, x, y),
            "parallax": partial(_eager, model, x, y, donate=False),
            "parallax, donated": partial(_eager, model, x, y, donate=True),
        }
        limits = {64: (0.95, 0.90), 256: (1.02, 0.98)}[width]
        yield from race(f"{name}, eager", ways, dict(zip([*ways][1:], limits, strict=True)))
        ways = {
            "nn.Module, accumulated": partial(_nn_accumulated, model, x, y),
            "parallax Accumulate, donated": partial(_accumulated, model, x, y),
        }
        yield from race(f"{name}, {EVERY} gradients to a step", ways)
        if quick:
            continue
        ways = {
            "nn.Module, compiled, fused AdamW": partial(_nn, model, x, y, wrap=torch.compile),
            "parallax.compile": partial(_whole, model, x, y),
            "parallax.compile, donated": partial(_whole, model, x, y, donate=("m", "s")),
            "parallax, gradient compiled, step donated": partial(
                _eager, model, x, y, donate=True, wrap=parallax.compile
            ),
        }
        limits = {64: (0.85, 0.80), 256: (0.97, 0.93)}[width]
        yield from race(f"{name}, compiled", ways, dict(zip([*ways][1:3], limits, strict=True)))
        if width == 64:
            yield from starting.race(
                name, "language", STARTS, dict(zip([*STARTS][1:], FIRST, strict=True)),
                dict(zip([*STARTS][1:], SECOND, strict=True)),
            )  # fmt: skip


def loss_of(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _same(fn: Any) -> Any:
    return fn


def _nn(template: NnGPT, x: Tensor, y: Tensor, wrap: Callable[[Any], Any] = _same) -> Step:
    model = copy.deepcopy(template)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    forward = wrap(loss_of)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = forward(model, x, y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _eager(
    template: NnGPT, x: Tensor, y: Tensor, *, donate: bool, wrap: Callable[[Any], Any] = _same
) -> Step:
    model, opt = tree.map(torch.clone, mirror(template)), optim.AdamW(RATE)
    state, gradient = opt.init(model), wrap(func.grad_and_value(loss_of))

    def step() -> Tensor:
        nonlocal model, state
        grads, loss = gradient(model, x, y)
        model, state = opt.step(model, grads, state, donate=donate)
        return loss  # type: ignore[no-any-return]  # of a function that may be compiled

    return step


class StackedGPT(Module):
    position: Parameter
    tokens: Embedding
    blocks: nn.Stack
    norm: LayerNorm
    head: Linear

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.position[: tokens.shape[-1]]
        x = self.blocks(x)
        return self.head(self.norm(x))


def _stacked(template: NnGPT) -> StackedGPT:
    model: Any = mirror(template)
    blocks = nn.Stack.of(model.blocks)
    return StackedGPT(model.position, model.tokens, blocks, model.norm, model.head)


def _whole(
    template: NnGPT, x: Tensor, y: Tensor, made: Callable[[NnGPT], Module] = mirror, **options: Any
) -> Step:
    model, opt = tree.map(torch.clone, made(template)), optim.AdamW(RATE)
    state = opt.init(model)

    def train(m: Any, s: Any, x: Tensor, y: Tensor) -> Any:
        grads, loss = func.grad_and_value(loss_of)(m, x, y)
        return *opt.step(m, grads, s), loss

    whole: Any = parallax.compile(train, **options)

    def step() -> Tensor:
        nonlocal model, state
        model, state, loss = whole(model, state, x, y)
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step


def _nn_accumulated(template: NnGPT, x: Tensor, y: Tensor) -> Step:
    model = copy.deepcopy(template)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = torch.zeros(())
        for _ in range(EVERY):
            loss = loss_of(model, x, y)
            (loss / EVERY).backward()
        optimizer.step()
        return loss.detach()

    return step


def _accumulated(template: NnGPT, x: Tensor, y: Tensor) -> Step:
    model = tree.map(torch.clone, mirror(template))
    opt = optim.Accumulate(optim.AdamW(RATE), EVERY)
    state, gradient = opt.init(model), func.grad_and_value(loss_of)

    def step() -> Tensor:
        nonlocal model, state
        loss = torch.zeros(())
        for _ in range(EVERY):
            grads, loss = gradient(model, x, y)
            model, state = opt.step(model, grads, state, donate=True)
            del grads
        return loss

    return step


def _start() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = NnGPT(LAYERS, 64)
    x, y = torch.randint(VOCABULARY, (2, BATCH, CONTEXT))
    given = ("m", "s")
    starting.start({
        "nn": partial(_nn, model, x, y, wrap=torch.compile),
        "whole": partial(_whole, model, x, y),
        "donated": partial(_whole, model, x, y, donate=given),
        "stack": partial(_whole, model, x, y, made=_stacked, donate=given),
    })  # fmt: skip


if __name__ == "__main__":
    _start()
