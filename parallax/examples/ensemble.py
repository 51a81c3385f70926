"""Sixteen networks trained at once, as one module, and what they disagree on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import func, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._comparison import Way, ways
from parallax.examples._digit_pictures import digit_pictures
from parallax.examples._digits import load
from parallax.examples._figures import new_figure, save_figure, show_images
from parallax.examples._progress import progress
from parallax.examples.per_sample_gradients import Net

MEMBERS = 16
BATCH = 128
RATE = 0.5


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy loss."""
    return F.cross_entropy(net(x), y)


def steps(members: Net, x: Tensor, y: Tensor, batches: Iterable[Tensor]) -> Net:
    """Gradient steps of every member; each has a batch of its own in each step."""
    gradients = func.ensemble_grad(loss, in_dims=(0, 0, 0))
    for batch in batches:
        members = members.update(lambda p, g: p - RATE * g, gradients(members, x[batch], y[batch]))
    return members


def steps_with_torch(
    models: list[nn.Module], x: Tensor, y: Tensor, batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """The same by ``torch.func`` and ``nn.Module`` s."""
    parameters, _ = torch.func.stack_module_state(models)
    weights = {name: value.detach() for name, value in parameters.items()}
    base = models[0]

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(base, weights, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(one))
    for batch in batches:
        grads = gradients(weights, x[batch], y[batch])
        weights = {name: value - RATE * grads[name] for name, value in weights.items()}
    return weights


def _batches(images: int, count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(images, (MEMBERS, BATCH), generator=rng) for _ in range(count)]


def train(count: int, seed: int = 0) -> Net:
    """Trains; returns the members as one module."""
    digits, first = load(), seed * MEMBERS
    members = tree.stack([Net(16).initialize(first + k) for k in range(MEMBERS)])
    batches = progress(_batches(len(digits.train_x), count), count, "steps")
    return steps(members, digits.train_x, digits.train_y, batches)


def probabilities(members: Net, x: Tensor) -> Tensor:
    """What each member says of each image, of shape (members, images, 10)."""
    scores: Tensor = func.vmap(Net.forward, (0, None))(members, x)
    return scores.softmax(-1)


def disagreement(shares: Tensor) -> Tensor:
    """How far the members differ on each image: the mutual information of digit and member."""

    def entropy(p: Tensor) -> Tensor:
        nats: Tensor = -torch.special.xlogy(p, p).sum(-1)
        return nats

    return entropy(shares.mean(0)) - entropy(shares).mean(0)


def draw(images: Tensor, shares: Tensor, path: Path) -> None:
    """Draws the images on which the members agree most, and those on which they agree least."""
    order = disagreement(shares).argsort()
    figure = new_figure(6, 2)
    show_images(figure, images[torch.cat([order[:8], order[-8:]])], 8)
    save_figure(figure, path)


def compare() -> list[Way]:
    """Ten steps by Parallax and by ``torch.func``."""
    digits = load()
    nets = [Net(16).initialize(seed) for seed in range(MEMBERS)]
    twins: list[nn.Module] = []
    for net in nets:
        twin = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
        twin.load_state_dict(
            dict(zip(dict(twin.named_parameters()), tree.leaves(net), strict=True))
        )
        twins.append(twin)
    members, x, y = tree.stack(nets), digits.train_x, digits.train_y
    batches = _batches(len(x), 10)
    return ways(
        ("parallax", lambda: tree.leaves(steps(members, x, y, batches)), (steps,)),
        (
            "torch.func with nn.Module",
            lambda: list(steps_with_torch(twins, x, y, batches).values()),
            (steps_with_torch,),
        ),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and print the accuracy, the time and the lines of code."""
    asked = command_line(__file__, __doc__, "digits on which they disagree").parse_args(arguments)
    count = 5 if asked.quick else 60
    digits, members = load(), train(count, asked.seed)
    shares = probabilities(members, digits.test_x)
    one = (shares.argmax(-1) == digits.test_y).double().mean()
    together = (shares.mean(0).argmax(-1) == digits.test_y).double().mean()
    print(f"{MEMBERS} networks: {one:.1%} right on their own, {together:.1%} together")
    uncertain = disagreement(shares).topk(7).indices
    read, labels = shares.mean(0).argmax(-1)[uncertain], digits.test_y[uncertain]
    print("the digits on which they disagree most, and what they read together:\n")
    print(digit_pictures(digits.test_x[uncertain], labels, read, 80))
    print(*compare(), sep="\n")
    if asked.picture:
        draw(digits.test_x, shares, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
