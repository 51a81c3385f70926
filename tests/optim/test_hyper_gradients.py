"""Derivatives by every hyper-parameter, in every mode, against finite differences of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import func, optim
from tests.optim.cases import Options, Point, label

START = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
STEPS = 7  # RAdam rectifies from the sixth on


def pair(which: int, value: Any) -> tuple[Any, Any]:
    betas: list[Any] = [0.9, 0.95]
    betas[which] = value
    return betas[0], betas[1]


# Of an optimizer with options a hyper-parameter, and where the derivative is taken.
CASES: list[tuple[str, Options, str, float]] = [
    ("SGD", {}, "lr", 0.1),
    ("SGD", {}, "momentum", 0.0),
    ("SGD", {"momentum": 0.9}, "dampening", 0.0),
    ("SGD", {"momentum": 0.9}, "dampening", 0.2),
    ("SGD", {"nesterov": True}, "momentum", 0.9),
    ("SGD", {"momentum": 0.9, "maximize": True}, "weight_decay", 0.1),
    ("Adam", {}, "beta1", 0.9),
    ("Adam", {"amsgrad": True}, "beta2", 0.95),
    ("AdamW", {}, "weight_decay", 0.0),
    ("NAdam", {}, "beta2", 0.95),
    ("NAdam", {"decoupled_weight_decay": True}, "weight_decay", 0.0),
    ("RAdam", {}, "beta2", 0.95),
    ("RAdam", {"decoupled_weight_decay": True}, "weight_decay", 0.1),
    ("Adamax", {}, "lr", 0.1),
    ("RMSprop", {"eps": 0.1}, "alpha", 0.9),
    ("RMSprop", {"momentum": 0.5, "centered": True, "eps": 0.1}, "lr", 0.1),
    ("RMSprop", {"eps": 0.1}, "momentum", 0.0),
    ("Adagrad", {}, "initial_accumulator_value", 0.5),
    ("Adagrad", {}, "lr_decay", 0.0),
    ("Adadelta", {}, "rho", 0.9),
    ("Adadelta", {}, "eps", 0.01),
    ("LAMB", {}, "weight_decay", 0.0),
    ("Lion", {}, "weight_decay", 0.1),
    ("SGDScheduleFree", {}, "momentum", 0.9),
    *[
        (name, {}, "weight_decay", at)
        for name in ("SGD", "Adam", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")
        for at in (0.0, 0.1)
    ],
]


def end_of(name: str, options: Options, hyper: str, value: Any, **more: Any) -> Tensor:
    """A number that depends on a hyper-parameter through some steps."""
    given = {"lr": 0.1, **options, **more, hyper: value}
    if hyper.startswith("beta"):
        given["betas"] = pair(int(hyper[-1]) - 1, given.pop(hyper))
    opt, point = getattr(optim, name)(**given), Point(START)
    state = opt.init(point)
    for _ in range(STEPS):
        grads = Point(point.at.sin() + 0.3 * point.at)
        point, state = opt.step(point, grads, state)
    total: Tensor = (point.at * START.T).sum()
    return total


def one(value: Tensor) -> Tensor:
    return torch.ones_like(value)


def on_the_tape(end: Callable[..., Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    return torch.autograd.grad(end(leaf, differentiable=True), leaf)[0]


# Each returns the derivative at the point; of two members of vmap that of the first.
HOW: dict[str, Callable[[Callable[..., Tensor], Tensor], Tensor]] = {
    "reverse": lambda end, at: func.grad(end)(at),
    "forward": lambda end, at: func.jvp(end, (at,), (one(at),))[1],
    "tape": on_the_tape,
    "vmap of reverse": lambda end, at: func.vmap(func.grad(end))(torch.stack([at, at + 0.01]))[0],
    "vmap of forward": lambda end, at: func.vmap(lambda x: func.jvp(end, (x,), (one(at),))[1])(
        torch.stack([at, at + 0.01])
    )[0],
    "reverse of vmap": lambda end, at: func.grad(
        lambda x: func.vmap(lambda factor: end(x * factor))(torch.stack([one(at), 0.9 * one(at)]))[
            0
        ]
    )(at),
}


@pytest.mark.parametrize("how", HOW.values(), ids=list(HOW))
@pytest.mark.parametrize(("name", "options", "hyper", "at"), CASES, ids=label)
def test_derivatives_by_hyper_parameters_are_exact(
    name: str, options: Options, hyper: str, at: float, how: Any
) -> None:
    def end(value: Any, **more: Any) -> Tensor:
        return end_of(name, options, hyper, value, **more)

    step = 1e-4 if name != "NAdam" else 1e-3  # it keeps a product in single precision
    found = how(end, torch.tensor(at, dtype=torch.float64))
    # Negative ones are refused.
    shifts = {-2: 1, -1: -8, 1: 8, 2: -1} if at else {0: -25, 1: 48, 2: -36, 3: 16, 4: -3}
    expected = sum(c * end(at + k * step) for k, c in shifts.items()) / (12 * step)
    rtol = 1e-6 if name != "NAdam" else 1e-3
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-7 if rtol < 1e-4 else 1e-3)
