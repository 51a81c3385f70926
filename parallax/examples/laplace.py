"""How sure is a network? Laplace's approximation and SWAG on a curve with a gap in the data.

Both put a normal distribution around the trained parameters. Laplace's takes its covariance from
the curvature of the loss, here the Gauss-Newton matrix; SWAG from the path of SGD. Laplace's grows
where no data is; SGD hardly moves in the directions that the data does not determine, so SWAG's
does not.

Source: D. MacKay, "A practical Bayesian framework for backpropagation networks", 1992;
W. Maddox et al., "A simple baseline for Bayesian uncertainty in deep learning", 2019.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from parallax import func, nn, optim, random, tree
from parallax.examples._command import command_line, run_quietly
from parallax.examples._figures import new_figure, save_figure
from parallax.examples._progress import progress

NOISE, PRIOR = 0.1, 1.0
"""Standard deviations of the data around the curve, and of the parameters around zero."""

Curve = tuple[Tensor, Tensor]
"""A mean and a standard deviation at each point."""


def sample_data(key: random.Key, count: int = 80) -> tuple[Tensor, Tensor]:
    """Points of a sine with noise, none of them between -1 and 1."""
    a, b = random.split(key)
    x = random.uniform(a, (count, 1)) * 4 - 2
    x = x + x.sign()
    return x, torch.sin(2 * x) + NOISE * random.normal(b, x.shape)


def negative_log_posterior(net: nn.MLP, x: Tensor, y: Tensor) -> Tensor:
    """Of the parameters given the data, up to a constant."""
    misfit = (net(x) - y).square().sum() / NOISE**2
    return (misfit + tree.vdot(net, net) / PRIOR**2) / 2


def train(x: Tensor, y: Tensor, *, steps: int, seed: int) -> nn.MLP:
    """The most probable parameters, by Adam."""
    net = nn.MLP((1, 24, 24, 1), torch.tanh).initialize(seed)
    adam = optim.Adam(lr=optim.schedules.WarmupCosineLR(0.02, steps // 20, steps))
    state = adam.init(net)
    for _ in progress(range(steps), steps, "steps of Adam"):
        net, state = adam.step(net, func.grad(negative_log_posterior)(net, x, y), state)
    return net


def laplace(net: nn.MLP, x: Tensor, new_x: Tensor) -> Curve:
    """The linearised predictive distribution of Laplace's approximation."""

    def outputs(net: nn.MLP, x: Tensor) -> Tensor:
        out: Tensor = net(x)
        return out.squeeze(-1)

    jacobian = func.jacobian_matrix(outputs)(net, x)  # (points, parameters)
    precision = jacobian.T @ jacobian / NOISE**2 + torch.eye(jacobian.shape[1]) / PRIOR**2
    new = func.jacobian_matrix(outputs)(net, new_x)
    variance = (new * torch.linalg.solve(precision, new.T).T).sum(1)
    return outputs(net, new_x).detach(), variance.sqrt()


def swag(net: nn.MLP, x: Tensor, y: Tensor, new_x: Tensor, key: random.Key, *, steps: int) -> Curve:
    """Predictions of networks drawn from the normal distribution that fits the path of SGD."""
    sgd = optim.SGD(lr=5e-6, momentum=0.9)
    state, path = sgd.init(net), []
    for step in progress(range(steps), steps, "steps of SGD"):
        batch = random.randint(random.fold_in(key, step), (len(x) // 4,), 0, len(x))
        grads = func.grad(negative_log_posterior)(net, x[batch], y[batch])
        net, state = sgd.step(net, tree.scale(grads, 4), state)
        if step % 10 == 9:
            path.append(tree.ravel(net)[0].detach())
    vectors, unravel = torch.stack(path), tree.ravel(net)[1]
    mean, spread = vectors.mean(0), vectors - vectors.mean(0)
    a, b = random.split(random.fold_in(key, "draws"))
    low_rank = random.normal(a, (50, len(spread))) @ spread / (len(spread) - 1) ** 0.5
    draws = mean + (low_rank + random.normal(b, (50, len(mean))) * spread.std(0)) / 2**0.5
    members = tree.stack([unravel(draw) for draw in draws])
    with torch.no_grad():
        found = func.vmap(nn.MLP.forward, in_dims=(0, None))(members, new_x).squeeze(-1)
    return found.mean(0), found.std(0)


def draw(x: Tensor, y: Tensor, new_x: Tensor, curves: dict[str, Curve], path: Path) -> None:
    """Draws each mean, with two standard deviations around it."""
    figure = new_figure(9, 4)
    for place, (name, (mean, std)) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(1, 2, place)
        axes.plot(new_x[:, 0], mean)
        low, high = mean - 2 * std, mean + 2 * std
        axes.fill_between(new_x[:, 0], low, high, alpha=0.3)
        axes.plot(x, y, "k.", markersize=3)
        axes.set(title=name, ylim=(-3, 3))
    save_figure(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and compare how sure both are where there is data and where there is none."""
    asked = command_line(__file__, __doc__, "both curves").parse_args(arguments)
    steps, key = 50 if asked.quick else 2000, random.key(asked.seed)
    x, y = sample_data(random.fold_in(key, "data"))
    net = train(x, y, steps=steps, seed=asked.seed)
    new_x = torch.linspace(-4, 4, 161)[:, None]
    curves = {
        "Laplace": laplace(net, x, new_x),
        "SWAG": swag(net, x, y, new_x, random.fold_in(key, "swag"), steps=steps),
    }
    distance = (new_x[:, 0].abs() - 2).abs()  # from the middle of the data on that side
    print("mean standard deviation of the curve   where data is   in the gap   beyond")
    for name, (_, std) in curves.items():
        near, gap, beyond = distance < 0.9, new_x[:, 0].abs() < 0.8, new_x[:, 0].abs() > 3.3
        print(
            f"{name:<38} {std[near].mean():13.3f} {std[gap].mean():12.3f} {std[beyond].mean():8.3f}"
        )
    if asked.picture:
        draw(x, y, new_x, curves, asked.picture)


if __name__ == "__main__":
    sys.exit(run_quietly(main))
