"""A physics-informed network that solves the heat equation.

The network is trained on the equation itself, u_t = K u_xx on 0 < x < 1, at random points: no
values of the solution are given. Boundary and initial values hold by construction. The derivatives
with respect to the inputs are taken inside the loss, and the loss is differentiated with respect to
the parameters.

Source: M. Raissi, P. Perdikaris, G. Karniadakis, "Physics-informed neural networks", 2019.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from parallax import func, nn, optim, random
from parallax.examples._command import command_line, run_quietly
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

CONDUCTIVITY = 0.1
POINTS = 256
RATE = 3e-3


def u(net: nn.MLP, t: Tensor, x: Tensor) -> Tensor:
    """The temperature at one time and place.

    It is sin(pi x) at t = 0 and zero at both ends, whatever the network says.
    """
    correction: Tensor = net(torch.stack([t, x])).squeeze()
    return torch.sin(math.pi * x) + t * x * (1 - x) * correction


def residual(net: nn.MLP, t: Tensor, x: Tensor) -> Tensor:
    """By how much the equation is violated at one time and place."""
    u_t: Tensor = func.grad(u, argnums=1)(net, t, x)
    u_xx = func.laplacian(u, argnums=2)(net, t, x)
    return u_t - CONDUCTIVITY * u_xx


def residual_loss(net: nn.MLP, t: Tensor, x: Tensor) -> Tensor:
    """The mean squared residual at points."""
    return func.vmap(residual, in_dims=(None, 0, 0))(net, t, x).square().mean()


def train(steps: int, seed: int) -> Iterator[tuple[nn.MLP, Tensor]]:
    """Trains at new random points in every step.

    Args:
        steps: how many steps of Adam.
        seed: of the first parameters and of the points.

    Yields:
        The network and the loss of the one before it, after every step.
    """
    key = random.key(seed)
    net = nn.MLP((2, 32, 32, 1), torch.tanh).initialize(random.fold_in(key, "net"))
    adam = optim.Adam(lr=optim.schedules.WarmupCosineLR(RATE, steps // 10, steps))
    state = adam.init(net)
    for step in range(steps):
        t, x = random.uniform(random.fold_in(key, step), (2, POINTS))
        grads, loss = func.grad_and_value(residual_loss)(net, t, x)
        net, state = adam.step(net, grads, state)
        yield net, loss


def solution(t: Tensor, x: Tensor) -> Tensor:
    """The exact solution, to compare with."""
    return torch.exp(-CONDUCTIVITY * math.pi**2 * t) * torch.sin(math.pi * x)


def field(net: nn.MLP, points: int = 65) -> tuple[Tensor, Tensor]:
    """The network's and the exact solution on a grid, a row for each time from 0 to 1."""
    t, x = torch.meshgrid(torch.linspace(0, 1, points), torch.linspace(0, 1, points), indexing="ij")
    with torch.no_grad():
        found = func.vmap(u, in_dims=(None, 0, 0))(net, t.flatten(), x.flatten())
    return found.reshape_as(t), solution(t, x)


def draw(found: Tensor, exact: Tensor, path: Path) -> None:
    """Draws the network's solution and its error."""
    figure = new_figure(9, 4)
    for place, (title, values) in enumerate({"u(t, x)": found, "error": found - exact}.items(), 1):
        axes = figure.add_subplot(1, 2, place)
        image = axes.imshow(values.numpy(), origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
        axes.set(xlabel="x", ylabel="t", title=title)
        figure.colorbar(image)
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and compare with the exact solution."""
    asked = command_line(__file__, __doc__, "the solution and its error").parse_args(arguments)
    steps = 20 if asked.quick else 1000
    *_, (net, loss) = progress(train(steps, asked.seed), steps, "steps")
    found, exact = field(net)
    print(f"mean squared residual after {steps} steps: {loss:.2e}")
    print(f"largest error of u(t, x), which is between 0 and 1: {(found - exact).abs().max():.2e}")
    if asked.picture:
        draw(found, exact, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
