"""MAML on sinusoids (Finn, Abbeel, Levine, 2017), with second-order gradients.

It trains a network that one gradient step on ten points adapts to a new sinusoid.
`python -m parallax.examples.maml`
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import Module, func, optim, random, tree
from parallax.examples.comparison import Way, ways
from parallax.examples.digits_net import Dense

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


def draw(key: random.Key, tasks: int = TASKS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sinusoids of random amplitude and phase: points to adapt on, and new ones."""
    a, b, c = random.split(key, 3)
    amplitude = random.uniform(a, (tasks, 1, 1)) * 4.9 + 0.1
    phase = random.uniform(b, (tasks, 1, 1)) * math.pi
    x = random.uniform(c, (tasks, 2 * POINTS, 1)) * 10 - 5
    y = amplitude * torch.sin(x + phase)
    return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]


def train(steps: int, seed: int) -> tuple[float, float]:
    """Meta-train; returns the loss on new tasks after one step, before and after training."""
    key = random.key(seed)
    net = Net().initialize(random.fold_in(key, "init"))
    tasks = draw(random.fold_in(key, "test"), 100)
    before = meta_loss(net, *tasks).item()
    adam = optim.Adam(lr=RATE)
    state = adam.init(net)
    for step in range(steps):
        grads = meta_gradient(net, *draw(random.fold_in(key, step)))
        net, state = adam.step(net, grads, state)
    return before, meta_loss(net, *tasks).item()


def compare() -> list[Way]:
    """One meta-gradient by Parallax and by ``torch.func``."""
    net, tasks = Net().initialize(0), draw(random.key(1))
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


def main() -> None:
    """Train, and print the result, the time and the lines of code."""
    before, after = train(200, 0)
    print(
        f"error after one step on a new sinusoid: {before:.2f} before, {after:.2f} after learning"
    )
    print(*compare(), sep="\n")


if __name__ == "__main__":
    main()
