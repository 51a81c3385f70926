"""The largest eigenvalue of the Hessian of a loss, without building the Hessian.

By power iteration on Hessian-vector products.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallax import func, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._comparison import Way, ways
from parallax.examples._digits import load
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


def compare(seed: int = 0, images: int = 256) -> list[Way]:
    """The eigenvalue by Parallax and by ``torch.func``, for an untrained network."""
    digits, net = load(), Net(16).initialize(seed)
    x, y = digits.train_x[:images], digits.train_y[:images]
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the eigenvalue, the time and the lines of code."""
    asked = command_line(__file__, __doc__).parse_args(arguments)
    # torch.func.jvp uses it itself when it is first called.
    warnings.filterwarnings("ignore", message=".torch.jit.script. is deprecated")
    found = compare(asked.seed, images=64 if asked.quick else 256)
    print(f"the largest eigenvalue of the Hessian is {found[0].result:.4f}")
    print(*found, sep="\n")


if __name__ == "__main__":
    sys.exit(run_quietly(main))
