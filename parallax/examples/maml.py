"""MAML on sinusoids (Finn, Abbeel, Levine, 2017), with second-order gradients.

It trains a network that one gradient step on ten points adapts to a new sinusoid.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Module, func, optim, random, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._comparison import Way, ways
from parallax.examples._digits_net import Dense
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

TASKS = 16
POINTS = 10
INNER_RATE = 0.05
RATE = 2e-3


class Net(Module):
    """Three dense layers on numbers."""

    first: Dense
    second: Dense
    third: Dense

    def __init__(self, hidden: int = 40) -> None:
        super().__init__()
        self.first = Dense(1, hidden)
        self.second = Dense(hidden, hidden)
        self.third = Dense(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map points ``(n, 1)`` to values ``(n, 1)``."""
        x = torch.tanh(self.first(x))
        return self.third(torch.tanh(self.second(x)))


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean squared error."""
    return F.mse_loss(net(x), y)


def adapted(net: Net, x: Tensor, y: Tensor) -> Net:
    """The network after one step on a task."""
    return net.update(lambda p, g: p - INNER_RATE * g, func.grad(loss)(net, x, y))


def meta_loss(net: Net, x: Tensor, y: Tensor, new_x: Tensor, new_y: Tensor) -> Tensor:
    """The mean loss of the adapted networks on new points of their tasks."""
    fit = func.vmap(lambda x, y, new_x, new_y: loss(adapted(net, x, y), new_x, new_y))
    return fit(x, y, new_x, new_y).mean()


def meta_gradient(net: Net, *tasks: Tensor) -> Net:
    """The gradient through the adaptation."""
    return func.grad(meta_loss)(net, *tasks)


def meta_gradient_with_torch(net: nn.Module, *tasks: Tensor) -> dict[str, Tensor]:
    """The same by ``torch.func`` and an ``nn.Module``."""
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(torch.func.functional_call(net, weights, (x,)), y)

    def task(weights: dict[str, Tensor], x: Tensor, y: Tensor, nx: Tensor, ny: Tensor) -> Tensor:
        grads = torch.func.grad(loss)(weights, x, y)
        moved = {name: value - INNER_RATE * grads[name] for name, value in weights.items()}
        return loss(moved, nx, ny)

    def meta(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.vmap(task, (None, 0, 0, 0, 0))(weights, *tasks).mean()

    return torch.func.grad(meta)(weights)  # type: ignore[no-any-return]  # untyped in torch


def sample_tasks(key: random.Key, tasks: int = TASKS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sinusoids of random amplitude and phase: points to adapt on, and new ones."""
    a, b, c = random.split(key, 3)
    amplitude = random.uniform(a, (tasks, 1, 1)) * 4.9 + 0.1
    phase = random.uniform(b, (tasks, 1, 1)) * math.pi
    x = random.uniform(c, (tasks, 2 * POINTS, 1)) * 10 - 5
    y = amplitude * torch.sin(x + phase)
    return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]


def train(steps: int, seed: int) -> Net:
    """Meta-trains; returns the network to start from on a new task."""
    key = random.key(seed)
    net = Net().initialize(random.fold_in(key, "init"))
    adam = optim.Adam(lr=RATE)
    state = adam.init(net)
    for step in progress(range(steps), steps, "steps"):
        grads = meta_gradient(net, *sample_tasks(random.fold_in(key, step)))
        net, state = adam.step(net, grads, state)
    return net


def draw(untrained: Net, net: Net, tasks: Sequence[Tensor], path: Path) -> None:
    """Draws both networks on the first task, before and after their step."""
    x, y, new_x, new_y = (part[0] for part in tasks)
    grid = torch.linspace(-5, 5, 200)[:, None]
    figure = new_figure(9, 4)
    titles = {"random numbers": untrained, "after meta-training": net}
    for place, (title, start) in enumerate(titles.items(), start=1):
        axes = figure.add_subplot(1, 2, place)
        with torch.no_grad():
            axes.plot(grid, start(grid), ":", label="before the step")
            axes.plot(grid, adapted(start, x, y)(grid), label="after one step")
        axes.plot(x, y, "k.", label="points of the step")
        axes.plot(new_x, new_y, "kx", label="new points")
        axes.set(title=title, ylim=(-6, 6))
        axes.legend()
    save_figure(figure, path)


def compare() -> list[Way]:
    """One meta-gradient by Parallax and by ``torch.func``."""
    net, tasks = Net().initialize(0), sample_tasks(random.key(1))
    twin = nn.Sequential(
        nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    )
    twin.load_state_dict(dict(zip(dict(twin.named_parameters()), tree.leaves(net), strict=True)))
    return ways(
        (
            "parallax",
            lambda: tree.leaves(meta_gradient(net, *tasks)),
            (loss, adapted, meta_loss, meta_gradient),
        ),
        (
            "torch.func with nn.Module",
            lambda: list(meta_gradient_with_torch(twin, *tasks).values()),
            (meta_gradient_with_torch,),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the loss, the time and the lines of code."""
    asked = command_line(__file__, __doc__, "a new sinusoid before and after").parse_args(arguments)
    steps = 5 if asked.quick else 200
    untrained = Net().initialize(random.fold_in(random.key(asked.seed), "init"))
    net = train(steps, asked.seed)
    tasks = sample_tasks(random.fold_in(random.key(asked.seed), "test"), 100)
    before, after = meta_loss(untrained, *tasks), meta_loss(net, *tasks)
    print(f"mean squared error on a new sinusoid, after one gradient step on {POINTS} points:")
    print(f"{before:.2f} from random numbers, {after:.2f} from what {steps} steps learned")
    print(*compare(), sep="\n")
    if asked.picture:
        draw(untrained, net, tasks, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
