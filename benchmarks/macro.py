"""Whole training loops: steps per second, and the loss curves on top of each other.

Three tasks, each six ways: an `nn.Module` as torch runs it, and with forward and backward
compiled and the optimizer's fused kernel; Parallax on the tape (`reset`, `backward`, `grad`), with
`func.grad`, and with the whole step compiled, with and without `donate`. The floor is a flat list,
the tape, and the fused kernel in place. All begin with the same numbers and see the same batches.
On one thread: what is compiled is compiled for a number of threads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import parallax
from benchmarks import floor
from benchmarks.harness import Candidate, Question, Row
from benchmarks.models import CONTEXT, VOCABULARY, NnGPT, NnMLP, mirror
from benchmarks.records import Curve
from benchmarks.residual import NnResNet
from parallax import bridge, effects, func, optim, tree
from parallax.examples._digits import load
from parallax.examples.resnet import ResNet

LATE = True

BATCH = 64
RATE = 1e-3

Step = Callable[[], Tensor]
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """A model in both forms, and what it is trained on."""

    name: str
    model: nn.Module
    module: Any
    batches: Batches


@dataclass(frozen=True)
class Run:
    """One way to train: its step, and the losses of its first steps."""

    name: str
    step: Step
    losses: Sequence[float]


def questions(quick: bool) -> Iterator[Question]:
    for task, runs in _races(quick):
        first, *others, straight = [Candidate(run.name, run.step) for run in runs]
        ours = [other for other in others if other.name.startswith("parallax")]
        theirs = [other for other in others if other not in ours]
        yield Question(
            f"a step of training the {task}",
            first,
            ours,
            theirs,
            check=_finite,
            floor=straight,
            remains="A step allocates new parameters and moments, and builds new trees",
        )


def curves(quick: bool, ask: Callable[[Question], list[Row]]) -> Iterator[Curve]:
    del ask  # nothing is timed here
    for task, runs in _races(quick):
        series = {run.name: [(float(k), v) for k, v in enumerate(run.losses)] for run in runs}
        yield Curve("macro", f"training the {task}", "step", "loss", series, powers=False)


@cache
def _races(quick: bool) -> list[tuple[str, list[Run]]]:
    """Trains every task in every way; the compiled ways are compiled here, before the clock."""
    steps = 3 if quick else 60
    races = []
    for task in _tasks(quick):
        compiled = [] if quick else [_nn_compiled, _compiled, _donated]
        ways = [_nn_eager, *compiled, _tape, _func, _straight]
        runs = [_begun(way, task, steps) for way in ways]
        for run in runs[1:]:
            torch.testing.assert_close(run.losses, runs[0].losses, rtol=2e-3, atol=2e-3)
        races.append((task.name, runs))
    return races


def _begun(way: Callable[[Task], tuple[str, Step]], task: Task, steps: int) -> Run:
    name, step = way(task)
    return Run(name, step, [float(step()) for _ in range(steps)])


def _finite(reference: Tensor, loss: Tensor) -> None:
    assert bool(torch.isfinite(reference)) and bool(torch.isfinite(loss))


# -- the tasks ----------------------------------------------------------------------------------


def _tasks(quick: bool) -> Iterator[Task]:
    torch.manual_seed(0)
    digits = load()
    images = list(zip(digits.train_x.split(BATCH), digits.train_y.split(BATCH), strict=True))[:-1]
    mlp = NnMLP((64, 64, 64, 10))
    yield Task("digits MLP", mlp, mirror(mlp), images)
    text = torch.randint(VOCABULARY, (16, 8, 1)) + torch.arange(CONTEXT + 1)  # it counts upwards
    lines = [(part[:, :-1], part[:, 1:]) for part in text % VOCABULARY]
    gpt = NnGPT(1)  # of one layer, since it is compiled twice before the clock
    yield Task("1-layer language model", gpt, mirror(gpt), lines)
    pictures = [(x.view(-1, 1, 8, 8), y) for x, y in images]
    width = 4 if quick else 8
    net = NnResNet(width)
    ours = bridge.load_state_dict(ResNet(per_group=1, width=width), net.state_dict())
    yield Task("ResNet-8 on digits", net, ours, pictures)


def _loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def _fed(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from task.batches


# -- the ways -----------------------------------------------------------------------------------


def _nn_eager(task: Task) -> tuple[str, Step]:
    model, batches = _copy(task), _fed(task)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = _loss(model, *next(batches))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return "nn.Module", step


def _nn_compiled(task: Task) -> tuple[str, Step]:
    model, batches = _copy(task), _fed(task)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    forward: Any = torch.compile(_loss)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = forward(model, *next(batches))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return "nn.Module, compiled", step


def _copy(task: Task) -> nn.Module:
    return copy.deepcopy(task.model)


def _tape(task: Task) -> tuple[str, Step]:
    module, opt, batches = task.module, optim.AdamW(RATE), _fed(task)
    state, seeds = opt.init(module), count()

    def step() -> Tensor:
        nonlocal module, state
        module = module.reset(next(seeds))
        loss, after = effects.collect(_loss)(module, *next(batches))
        loss.backward()
        module, state = opt.step(after, module.grad(), state)
        return loss.detach()

    return "parallax, tape", step


def _func(task: Task) -> tuple[str, Step]:
    module, opt, batches = task.module, optim.AdamW(RATE), _fed(task)
    state = opt.init(module)

    def step() -> Tensor:
        nonlocal module, state
        module, state, loss = _pure_step(opt, module, state, *next(batches))
        return loss

    return "parallax, func", step


def _compiled(task: Task) -> tuple[str, Step]:
    return "parallax, compiled", _whole(task)


def _donated(task: Task) -> tuple[str, Step]:
    return "parallax, compiled and donated", _whole(task, donate=("m", "s"))


def _whole(task: Task, **options: Any) -> Step:
    module, opt, batches = tree.map(torch.clone, task.module), optim.AdamW(RATE), _fed(task)
    state = opt.init(module)
    whole: Any = parallax.compile(lambda m, s, x, y: _pure_step(opt, m, s, x, y), **options)

    def step() -> Tensor:
        nonlocal module, state
        module, state, loss = whole(module, state, *next(batches))
        return loss  # type: ignore[no-any-return]  # a compiled function's result

    return step


def _pure_step(opt: Any, module: Any, state: Any, x: Tensor, y: Tensor) -> tuple[Any, Any, Tensor]:
    """A model, a state and a batch in; the next model and state, and the loss, out."""
    grads, (loss, after) = func.grad(_with_effects, has_aux=True)(module, x, y)
    module, state = opt.step(after, grads, state)
    return module, state, loss


def _with_effects(module: Any, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, Any]]:
    loss, after = effects.collect(_loss)(module, x, y)
    return loss, (loss.detach(), after)


def _straight(task: Task) -> tuple[str, Step]:
    line, batches = floor.line_of(task.model), _fed(task)
    leaves = [value.detach().clone().requires_grad_() for value in task.model.parameters()]
    moved = floor.adamw_of(leaves, RATE)

    def step() -> Tensor:
        x, y = next(batches)
        loss = F.cross_entropy(line(leaves, x).flatten(0, -2), y.flatten())
        moved(torch.autograd.grad(loss, leaves))
        return loss.detach()

    return "floor: a flat list, in place", step
