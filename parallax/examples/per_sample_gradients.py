"""Differentially private training: clip the gradient of each example, then add noise.

DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016) needs the gradient of every
example on its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import func, random, tree
from parallax.core.module import Module
from parallax.examples._command import command_line, run_quietly
from parallax.examples._comparison import Way, ways
from parallax.examples._digits import load
from parallax.examples._digits_net import Dense
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

CLIP = 1.0
NOISE = 0.5
RATE = 0.5
BATCH = 256


class Net(Module):
    """Two dense layers."""

    first: Dense
    second: Dense

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.first = Dense(64, hidden)
        self.second = Dense(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Score each of the ten digits."""
        return self.second(torch.tanh(self.first(x)))


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy loss."""
    return F.cross_entropy(net(x), y)


def clipped(net: Net, x: Tensor, y: Tensor) -> Net:
    """The mean of the gradients of single examples, each scaled to norm ``CLIP`` at most."""
    grads = func.per_sample_grad(loss)(net, x, y)
    norms = func.vmap(tree.norm)(grads)
    scale = (CLIP / norms).clamp(max=1.0)
    return tree.map(lambda g: torch.einsum("b,b...->...", scale, g) / len(x), grads)


def gradient_norms(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The norm of the gradient of each example."""
    return func.vmap(tree.norm)(func.per_sample_grad(loss)(net, x, y))


def clipped_with_torch(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The same by ``torch.func`` and an ``nn.Module``."""
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)

    grads = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(weights, x, y)
    flat = [g.flatten(1) for g in grads.values()]
    norms = torch.cat(flat, 1).norm(dim=1)
    scale = (CLIP / norms).clamp(max=1.0)
    return {name: torch.einsum("b,b...->...", scale, g) / len(x) for name, g in grads.items()}


def train(steps: int, seed: int) -> tuple[Net, float]:
    """Train privately; returns the network and its accuracy on the test images."""
    digits, key = load(), random.key(seed)
    net = Net().initialize(random.fold_in(key, "init"))
    for step in progress(range(steps), steps, "steps"):
        order, noise = random.split(random.fold_in(key, step))
        batch = random.permutation(order, len(digits.train_x))[:BATCH]
        grads = clipped(net, digits.train_x[batch], digits.train_y[batch])
        vector, unravel = tree.ravel(grads)
        vector = vector + random.normal(noise, vector.shape) * (NOISE * CLIP / BATCH)
        net = net.update(lambda p, g: p - RATE * g, unravel(vector))
    right = net(digits.test_x).argmax(1) == digits.test_y
    return net, right.double().mean().item()


def compare() -> list[Way]:
    """Clipped gradients of one batch by Parallax and by ``torch.func``."""
    digits, net = load(), Net().initialize(0)
    twin = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    names = dict(zip(dict(twin.named_parameters()), tree.leaves(net), strict=True))
    twin.load_state_dict(names)
    x, y = digits.train_x[:BATCH], digits.train_y[:BATCH]
    return ways(
        ("parallax", lambda: tree.leaves(clipped(net, x, y)), (clipped,)),
        (
            "torch.func with nn.Module",
            lambda: list(clipped_with_torch(twin, x, y).values()),
            (clipped_with_torch,),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy, the time and the lines of code."""
    asked = command_line(__file__, __doc__, "the norms of the gradients").parse_args(arguments)
    steps = 3 if asked.quick else 60
    net, accuracy = train(steps, asked.seed)
    print(f"{steps} private steps (clip {CLIP}, noise {NOISE}): test accuracy {accuracy:.1%}")
    digits = load()
    norms = gradient_norms(net, digits.train_x, digits.train_y)
    print(
        f"the gradient of one example: median norm {norms.median():.3f}, largest {norms.max():.2f}"
    )
    print(*compare(), sep="\n")
    if asked.picture:
        figure = new_figure(6, 4)
        axes = figure.add_subplot()
        axes.hist(norms.tolist(), bins=50)
        axes.axvline(CLIP, color="black", linestyle="--", label="clipped from here on")
        axes.set(xlabel="norm of the gradient of one example", ylabel="examples", yscale="log")
        axes.legend()
        save_figure(figure, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
