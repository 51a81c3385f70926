"""Compiled steps of ensembles: the numbers of each member alone, and no operator without a rule."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import parallax
from parallax import func, optim, tree
from tests.optim.cases import Net

# Each kernel once, and the options that call other operators; but Muon's, which is in bfloat16: its
# own rounding is a hundredth of a step.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("AdamW", {"lr": 0.1}),
    ("NAdam", {"lr": 0.1}),
    ("RAdam", {"lr": 0.1}),
    ("Adamax", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1}),
    ("Adadelta", {"lr": 0.1}),
    ("RMSprop", {"lr": 0.1, "centered": True, "momentum": 0.9}),
    ("Rprop", {"lr": 0.1}),
    ("ASGD", {"lr": 0.1}),
    ("Adafactor", {"lr": 0.1}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[name for name, _ in CASES])
def test_each_member_steps_as_it_does_alone(name: str, options: dict[str, Any]) -> None:
    opt = getattr(optim, name)(**options)
    net = Net()
    members = [net.initialize(seed) for seed in range(2)]
    grads = [net.initialize(seed) for seed in (7, 8)]

    def twice(model: Any, grads: Any, state: Any) -> Any:
        model, state = opt.step(model, grads, state)
        return opt.step(model, tree.scale(grads, -0.5), state)

    alone = [twice(m, g, opt.init(m))[0] for m, g in zip(members, grads, strict=True)]
    step = parallax.compile(func.vmap(twice), backend="eager")
    ensemble = tree.stack(members)
    states = func.vmap(opt.init)(ensemble)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tree.unstack(step(ensemble, tree.stack(grads), states)[0])
    for one, other in zip(found, alone, strict=True):
        assert tree.allclose(one, other, rtol=1e-5, atol=1e-6), tree.diff(one, other)
    assert not torch.equal(found[0].first, members[0].first)


@pytest.mark.parametrize(("name", "options"), CASES[:2], ids=["SGD", "Adam"])
def test_members_step_by_their_own_gradients_from_a_model_they_share(
    name: str, options: dict[str, Any]
) -> None:
    opt = getattr(optim, name)(**options)
    model = Net().initialize(0)
    grads = [Net().initialize(seed) for seed in (7, 8)]

    def adapted(grads: Any) -> Any:
        stepped, state = opt.step(model, grads, opt.init(model))
        return opt.step(stepped, tree.scale(grads, -0.5), state)[0]

    alone = [adapted(one) for one in grads]
    together = parallax.compile(func.vmap(adapted), backend="eager")(tree.stack(grads))
    for one, other in zip(tree.unstack(together), alone, strict=True):
        assert tree.allclose(one, other, rtol=1e-5, atol=1e-6), tree.diff(one, other)


def test_each_member_may_have_a_rate_of_its_own_for_a_model_they_share() -> None:
    model, grads = Net().initialize(0), Net().initialize(7)
    rates = torch.tensor([0.1, 0.5])

    def stepped(rate: torch.Tensor) -> Any:
        opt = optim.SGD(lr=rate)
        return opt.step(model, grads, opt.init(model))[0]

    found = tree.unstack(parallax.compile(func.vmap(stepped), backend="eager")(rates))
    for rate, one in zip(rates.tolist(), found, strict=True):
        assert tree.allclose(one, tree.sub(model, grads, rate), rtol=1e-6, atol=1e-7)


def test_the_gradient_through_adapted_members_is_that_of_a_loop() -> None:
    model, inner = Net().initialize(0), optim.SGD(lr=0.1, momentum=0.9)
    x = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))

    def loss(model: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = model(x)
        return out.square().mean()

    def task(model: Any, x: torch.Tensor) -> torch.Tensor:
        stepped, state = inner.step(model, func.grad(loss)(model, x), inner.init(model))
        stepped, state = inner.step(stepped, func.grad(loss)(stepped, x), state)
        return loss(stepped, x)

    def outer(model: Any, x: torch.Tensor) -> torch.Tensor:
        return func.vmap(task, (None, 0))(model, x).sum()

    def by_loop(model: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([task(model, part) for part in x]).sum()

    found = parallax.compile(func.grad(outer), backend="aot_eager")(model, x)
    expected = func.grad(by_loop)(model, x)
    assert tree.allclose(found, expected, rtol=1e-4, atol=1e-6), tree.diff(found, expected)
