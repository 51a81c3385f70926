"""The largest eigenvalue of the Hessian of a loss, without building the Hessian.

Power iteration on Hessian-vector products; the Laplace approximation of a posterior needs the same
products. `python -m parallax.examples.laplace`
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

ITERATIONS = 20


def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy loss."""
    return F.cross_entropy(net(x), y)


def sharpness(net: Net, x: Tensor, y: Tensor) -> Tensor:
    """The largest eigenvalue of the Hessian of the loss."""
    along = tree.map(torch.ones_like, net)
    value = torch.zeros(())
    for _ in range(ITERATIONS):
        along = tree.scale(along, 1 / tree.norm(along))
        _, (product,) = func.hvp(lambda net: loss(net, x, y), (net,), (along,))
        value, along = tree.vdot(along, product), product
    return value


def sharpness_with_torch(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The same by ``torch.func`` and an ``nn.Module``."""
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)

    along = {name: torch.ones_like(value) for name, value in weights.items()}
    value = torch.zeros(())
    for _ in range(ITERATIONS):
        norm = torch.cat([v.flatten() for v in along.values()]).norm()
        along = {name: v / norm for name, v in along.items()}
        product = torch.func.jvp(torch.func.grad(loss), (weights,), (along,))[1]
        value = torch.stack([(along[name] * product[name]).sum() for name in along]).sum()
        along = product
    return value


def compare() -> list[Way]:
    """The eigenvalue by Parallax and by ``torch.func``, for an untrained network."""
    digits, net = load(), Net(16).initialize(0)
    x, y = digits.train_x[:256], digits.train_y[:256]
    twin = nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
    twin.load_state_dict(dict(zip(dict(twin.named_parameters()), tree.leaves(net), strict=True)))
    return ways(
        ("parallax", lambda: sharpness(net, x, y), (sharpness,)),
        (
            "torch.func with nn.Module",
            lambda: sharpness_with_torch(twin, x, y),
            (sharpness_with_torch,),
        ),
    )


def main() -> None:
    """Print the eigenvalue, the time and the lines of code."""
    found = compare()
    print(f"the largest eigenvalue of the Hessian is {found[0].result:.4f}")
    print(*found, sep="\n")


if __name__ == "__main__":
    main()
