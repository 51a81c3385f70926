"""DP-SGD: per-sample gradients clipped and summed, noise, and SGD.

The first losses, which are compared, are those of steps without noise.
"""

# pyright: reportMissingImports=false
# opacus is a peer, which need not be installed.

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parallax
from benchmarks import peers
from benchmarks.harness import Question
from benchmarks.jobs.way import Step, race
from parallax import bridge, func, optim, random, tree

RATE, LARGEST, NOISE = 0.05, 1.0, 1.0
OPT = optim.SGD(RATE)
OURS = "parallax func.clipped_grad, donated"


def questions(quick: bool) -> Iterator[Question]:
    for name, make, shape, limit in (
        ("an MLP", _mlp, (784,), 0.8),
        ("a CNN", _cnn, (1, 28, 28), 0.85),
    ):
        for batch in (8,) if quick else (64, 256):
            torch.manual_seed(0)
            noise = torch.zeros(())
            data = make(), torch.randn(batch, *shape), torch.randint(10, (batch,)), noise
            absent: dict[str, str] = {}
            best: dict[str, Callable[[], Step]] = {}
            if peers.find("opacus", absent):
                best["Opacus, ghost clipping"] = partial(_opacus, *data)
            job = f"DP-SGD of {name}, batch {batch}"
            eager = {"torch.func": partial(_functional, *data), OURS: partial(_eager, *data)}
            made = [*race(f"{job}, eager", best | eager, {OURS: 1.0}, absent=absent)]
            if not quick:
                compiled = {
                    "torch.func, compiled": partial(_functional, *data, torch.compile),
                    "parallax.compile, donated": partial(_compiled, *data),
                }
                limits = {"parallax.compile, donated": limit}
                made += race(f"{job}, compiled", best | compiled, limits, absent=absent)
            noise.fill_(NOISE)
            yield from made


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _loss(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(model(x[None]), y[None])
    return loss, loss.detach()


def _opacus(template: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    largest: Any = LARGEST  # annotated int there
    model = GradSampleModuleFastGradientClipping(
        copy.deepcopy(template), max_grad_norm=largest, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), RATE),
        noise_multiplier=0.0,
        max_grad_norm=LARGEST,
        expected_batch_size=len(x),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.noise_multiplier = float(noise)
        optimizer.step()
        return loss.loss_per_sample.detach().mean()  # type: ignore[no-any-return]  # of opacus

    return step


def _functional(
    template: nn.Module, x: Tensor, y: Tensor, noise: Tensor,
    wrap: Callable[[Any], Any] = lambda f: f,
) -> Step:  # fmt: skip
    weights = {name: value.detach().clone() for name, value in template.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = torch.func.functional_call(template, weights, (x[None],))
        return F.cross_entropy(out, y[None])

    many = torch.func.vmap(torch.func.grad_and_value(loss), (None, 0, 0))

    def private(weights: dict[str, Tensor], x: Tensor, y: Tensor, noise: Tensor) -> Any:
        grads, losses = many(weights, x, y)
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads.values()]).norm(dim=0)
        factors = (LARGEST / norms).clamp(max=1.0)
        moved = {}
        for name, grad in grads.items():
            total = torch.einsum("n,n...->...", factors, grad)
            total = total + noise * torch.randn_like(total)
            moved[name] = weights[name] - RATE * total / len(x)
        return moved, losses.mean()

    whole = wrap(private)

    def step() -> Tensor:
        nonlocal weights
        weights, value = whole(weights, x, y, noise)
        return value  # type: ignore[no-any-return]  # of torch.func

    return step


def _train(
    model: Any, state: Any, x: Tensor, y: Tensor, noise: Tensor, key: Any, donate: bool = False
) -> Any:
    grads, losses = func.clipped_grad(_loss, LARGEST, has_aux=True)(model, x, y)
    keys = iter(random.split(key, len(tree.leaves(grads))))

    def noised(grad: Tensor) -> Tensor:
        return (grad + noise * random.normal(next(keys), grad.shape)) / len(x)

    return *OPT.step(model, tree.map(noised, grads), state, donate=donate), losses.mean()


def _eager(template: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Step:
    return _stepping(partial(_train, donate=True), template, x, y, noise)


def _compiled(template: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Step:
    return _stepping(parallax.compile(_train, donate=(0, 1)), template, x, y, noise)


def _stepping(train: Any, template: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Step:
    model, keys = bridge.lift(copy.deepcopy(template)), count()
    state, key = OPT.init(model), random.key(0)

    def step() -> Tensor:
        nonlocal model, state
        model, state, loss = train(model, state, x, y, noise, random.fold_in(key, next(keys)))
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step
