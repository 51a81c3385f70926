"""Five optimizers on one network, and their training curves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import Module, Parameter, func, optim
from parallax.examples._command import command_line, run_quietly
from parallax.examples._digits import Digits, load
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

BATCH = 64
STEPS = 400


class Net(Module):
    """One hidden layer."""

    hidden: Parameter
    hidden_bias: Parameter
    out: Parameter
    out_bias: Parameter

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.hidden = Parameter((size, 64), torch.nn.init.xavier_normal_)
        self.hidden_bias = Parameter((size,), torch.nn.init.zeros_)
        self.out = Parameter((10, size), torch.nn.init.xavier_normal_)
        self.out_bias = Parameter((10,), torch.nn.init.zeros_)

    def forward(self, x: Tensor) -> Tensor:
        """Score each of the ten digits, for a batch of images."""
        return F.linear(
            torch.relu(F.linear(x, self.hidden, self.hidden_bias)), self.out, self.out_bias
        )


def contestants(steps: int) -> dict[str, Any]:
    """Make the optimizers, each with a rate that suits it.

    Args:
        steps: how many they will train; the schedule of one depends on it.

    Returns:
        Optimizers by name.
    """
    warm = optim.schedules.WarmupCosineLR(0.02, steps // 10, steps)
    matrices = optim.Muon(lr=0.05)
    return {
        "SGD": optim.SGD(lr=0.1),
        "SGD with momentum": optim.SGD(lr=0.1, momentum=0.9),
        "Adagrad": optim.Adagrad(lr=0.02),
        "AdamW, warmup and cosine": optim.AdamW(lr=warm),
        "Muon and Adam": optim.Split(
            {lambda path, leaf: leaf.ndim == 2: matrices}, rest=optim.Adam(lr=0.01)
        ),
    }


def loss_of(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """Compute the mean cross-entropy."""
    return F.cross_entropy(net(x), y)


def curve(opt: Any, digits: Digits, *, steps: int, seed: int) -> list[float]:
    """Train one network, from the same initial values and on the same batches for every optimizer.

    Args:
        opt: the optimizer.
        digits: images and labels.
        steps: how many steps.
        seed: decides the first numbers and the batches.

    Returns:
        The loss before every step, each on that step's batch.
    """
    net = Net().initialize(seed)
    state = opt.init(net)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(digits.train_x), (BATCH,), generator=generator)
        grads, loss = func.grad_and_value(loss_of)(
            net, digits.train_x[batch], digits.train_y[batch]
        )
        net, state = opt.step(net, grads, state)
        losses.append(loss.item())
    return losses


def smooth(losses: Sequence[float], window: int = 20) -> list[float]:
    """Take the mean of the last `window` losses at every step."""
    parts = [losses[max(0, k - window + 1) : k + 1] for k in range(len(losses))]
    return [sum(part) / len(part) for part in parts]


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Draws the curves.

    Args:
        curves: losses by name.
        path: where to write the PNG.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for name, losses in curves.items():
        axes.plot(smooth(losses), label=name)
    axes.set(yscale="log", xlabel="step", ylabel="training loss", title="Five optimizers, one net")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with every optimizer, and print the last losses."""
    parser = command_line(__file__, __doc__, "the training curves")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"default: {STEPS}")
    asked = parser.parse_args(arguments)
    steps = 20 if asked.quick else asked.steps
    digits, runners = load(), contestants(steps)
    curves = {}
    for name, opt in progress(runners.items(), len(runners), "optimizers"):
        curves[name] = curve(opt, digits, steps=steps, seed=asked.seed)
    print(f"training loss before and after {steps} steps")
    for name, losses in curves.items():
        print(f"{name:<25} {losses[0]:.3f} -> {smooth(losses)[-1]:.3f}")
    if asked.picture:
        draw(curves, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
