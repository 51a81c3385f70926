"""Differentially private training: clip the gradient of each example, then add noise.

DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016) needs the gradient of every
example on its own. `python -m parallax.examples.per_sample_gradients`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import func, random, tree
from parallax.core.module import Module
from parallax.examples.comparison import Way, ways
from parallax.examples.digits import load
from parallax.examples.digits_net import Dense

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
    return tree.map(lambda g: torch.einsum("b,b...->...", scale, g) / len(x), grads)  # type: ignore[no-any-return]  # of the net's class


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
    for step in range(steps):
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


def main() -> None:
    """Train, and print the result, the time and the lines of code."""
    _, accuracy = train(60, 0)
    print(f"60 private steps (clip {CLIP}, noise {NOISE}): test accuracy {accuracy:.1%}")
    print(*compare(), sep="\n")


if __name__ == "__main__":
    main()
