"""Sixteen networks trained at once, as one module.

`python -m parallax.examples.ensemble`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import func, tree
from parallax.examples.comparison import Way, ways
from parallax.examples.digits import load
from parallax.examples.per_sample_gradients import Net

MEMBERS = 16
BATCH = 128
RATE = 0.5


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy loss."""
    return F.cross_entropy(net(x), y)


def steps(members: Net, x: Tensor, y: Tensor, count: int) -> Net:
    """Gradient steps of every member; each has a batch of its own in each step."""
    gradients = func.ensemble_grad(loss, in_dims=(0, 0, 0))
    for batch in _batches(len(members.first.weight), len(x), count):
        members = members.update(lambda p, g: p - RATE * g, gradients(members, x[batch], y[batch]))
    return members


def steps_with_torch(
    models: list[nn.Module], x: Tensor, y: Tensor, count: int
) -> dict[str, Tensor]:
    """The same by ``torch.func`` and ``nn.Module`` s."""
    parameters, _ = torch.func.stack_module_state(models)
    weights = {name: value.detach() for name, value in parameters.items()}
    base = models[0]

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(base, weights, (x,)), y)

    gradients = torch.func.vmap(torch.func.grad(one))
    for batch in _batches(len(models), len(x), count):
        grads = gradients(weights, x[batch], y[batch])
        weights = {name: value - RATE * grads[name] for name, value in weights.items()}
    return weights


def _batches(members: int, images: int, count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(images, (members, BATCH), generator=rng) for _ in range(count)]


def train(count: int) -> tuple[float, float]:
    """Train; returns the mean accuracy of a member and that of the whole ensemble."""
    digits = load()
    members = tree.stack([Net(16).initialize(seed) for seed in range(MEMBERS)])
    members = steps(members, digits.train_x, digits.train_y, count)
    scores = func.vmap(Net.forward, (0, None))(members, digits.test_x).softmax(-1)
    one = (scores.argmax(-1) == digits.test_y).double().mean().item()
    together = (scores.mean(0).argmax(-1) == digits.test_y).double().mean().item()
    return one, together


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
    return ways(
        ("parallax", lambda: tree.leaves(steps(members, x, y, 10)), (steps,)),
        (
            "torch.func with nn.Module",
            lambda: list(steps_with_torch(twins, x, y, 10).values()),
            (steps_with_torch,),
        ),
    )


def main() -> None:
    """Train, and print the result, the time and the lines of code."""
    one, together = train(60)
    print(f"{MEMBERS} networks: {one:.1%} right on their own, {together:.1%} together")
    print(*compare(), sep="\n")


if __name__ == "__main__":
    main()
