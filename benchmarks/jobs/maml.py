"""MAML on sinusoids: the gradient through inner gradient steps on each task, and Adam."""

# pyright: reportMissingImports=false
# torchopt is a peer, which need not be installed.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from benchmarks import peers
from benchmarks.harness import Question
from benchmarks.jobs.way import Step, race
from parallax import func, nn, optim, tree

HIDDEN, POINTS, INNER_RATE, RATE = 40, 10, 0.05, 1e-3

Tasks = tuple[Tensor, Tensor, Tensor, Tensor]


def questions(quick: bool) -> Iterator[Question]:
    for tasks, inner in ((8, 1),) if quick else ((8, 1), (32, 3)):
        torch.manual_seed(0)
        net = nn.MLP((1, HIDDEN, HIDDEN, 1), torch.tanh).initialize(0)
        data = _tasks(tasks)
        name = f"MAML, {tasks} tasks, {inner} inner step{'s' * (inner > 1)}"
        absent: dict[str, str] = {}
        ways: dict[str, Callable[[], Step]] = {
            "torch.func, fused Adam": partial(_functional, net, data, inner),
        }
        if peers.find("torchopt", absent):
            ways["torchopt.MetaSGD, a loop over tasks"] = partial(_torchopt, net, data, inner)
        ways["parallax"] = partial(_ours, net, data, inner)
        yield from race(f"{name}, eager", ways, {"parallax": 1.0}, absent=absent)
        if quick:
            continue
        ways = {
            "torch.func, compiled, fused Adam": partial(
                _functional, net, data, inner, torch.compile
            ),
            "parallax.compile": partial(_compiled, net, data, inner),
            "parallax.compile, donated": partial(
                _compiled, net, data, inner, donate=("net", "state")
            ),
        }
        limits = dict.fromkeys([*ways][1:], 0.40)
        yield from race(f"{name}, compiled", ways, limits)


def _tasks(count: int) -> Tasks:
    amplitude, phase = 0.1 + 4.9 * torch.rand(count, 1, 1), 3.14 * torch.rand(count, 1, 1)
    x = 10 * torch.rand(count, 2 * POINTS, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]


def _line(leaves: Sequence[Tensor], x: Tensor) -> Tensor:
    for k in range(0, len(leaves) - 2, 2):
        x = F.linear(x, leaves[k], leaves[k + 1]).tanh()
    return F.linear(x, leaves[-2], leaves[-1])


def _functional(
    net: Any, data: Tasks, inner: int, wrap: Callable[[Any], Any] = lambda f: f
) -> Step:
    leaves = [leaf.clone() for leaf in tree.leaves(net)]
    optimizer = torch.optim.Adam(leaves, RATE, fused=True)

    def loss(leaves: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(_line(leaves, x), y)

    def task(leaves: Sequence[Tensor], x: Tensor, y: Tensor, nx: Tensor, ny: Tensor) -> Tensor:
        for _ in range(inner):
            grads = torch.func.grad(loss)(leaves, x, y)
            leaves = tuple([p - INNER_RATE * g for p, g in zip(leaves, grads, strict=True)])
        return loss(leaves, nx, ny)

    def meta(leaves: Sequence[Tensor], data: Tasks) -> Tensor:
        return torch.func.vmap(task, (None, 0, 0, 0, 0))(leaves, *data).mean()

    gradient = wrap(torch.func.grad_and_value(meta))

    def step() -> Tensor:
        grads, value = gradient(tuple(leaves), data)
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        optimizer.step()
        return value  # type: ignore[no-any-return]  # of torch.func

    return step


def _torchopt(net: Any, data: Tasks, inner: int) -> Step:
    import torchopt

    layers: list[torch.nn.Module] = []
    for n, m in ((1, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)):
        layers += [torch.nn.Linear(n, m), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers[:-1])
    names = dict(model.named_parameters())
    model.load_state_dict(dict(zip(names, tree.leaves(net), strict=True)))
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    adapting = torchopt.MetaSGD(model, lr=INNER_RATE)

    def step() -> Tensor:
        optimizer.zero_grad()
        start = torchopt.extract_state_dict(model, by="reference")
        begun = torchopt.extract_state_dict(adapting, by="reference")
        losses = []
        for x, y, nx, ny in zip(*data, strict=True):
            for _ in range(inner):
                adapting.step(F.mse_loss(model(x), y))
            losses.append(F.mse_loss(model(nx), ny))
            torchopt.recover_state_dict(model, start)
            torchopt.recover_state_dict(adapting, begun)
        loss = torch.stack(losses).mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def _loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(x), y)


def _meta(inner: int) -> Callable[[Any, Tasks], Tensor]:
    def task(net: Any, x: Tensor, y: Tensor, nx: Tensor, ny: Tensor) -> Tensor:
        for _ in range(inner):
            net = net.update(lambda p, g: p - INNER_RATE * g, func.grad(_loss)(net, x, y))
        return _loss(net, nx, ny)

    def meta(net: Any, data: Tasks) -> Tensor:
        losses: Tensor = func.vmap(task, (None, 0, 0, 0, 0))(net, *data)
        return losses.mean()

    return meta


def _ours(net: Any, data: Tasks, inner: int) -> Step:
    net, opt, meta = tree.map(torch.clone, net), optim.Adam(RATE), _meta(inner)
    state = opt.init(net)

    def step() -> Tensor:
        nonlocal net, state
        grads, loss = func.grad_and_value(meta)(net, data)
        net, state = opt.step(net, grads, state)
        return loss

    return step


def _compiled(net: Any, data: Tasks, inner: int, **options: Any) -> Step:
    net, opt, meta = tree.map(torch.clone, net), optim.Adam(RATE), _meta(inner)
    state = opt.init(net)

    def train(net: Any, state: Any, data: Tasks) -> Any:
        grads, loss = func.grad_and_value(meta)(net, data)
        return *opt.step(net, grads, state), loss

    whole: Any = parallax.compile(train, **options)

    def step() -> Tensor:
        nonlocal net, state
        net, state, loss = whole(net, state, data)
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step
