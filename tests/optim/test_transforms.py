"""Steps under vmap and inside derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from parallax import func, optim, tree
from parallax.optim import schedules
from tests.comparing import same_leaves
from tests.corpus import MLP, example_input
from tests.optim.cases import (
    DIFFERENTIABLE,
    FIRST,
    OPTIONS,
    Options,
    Point,
    distance,
    gradients,
    label,
    make,
    model_for,
)

MEMBERS = 3
RATES = (0.01, 0.03, 0.1)


# -- vmap ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=label)
def test_an_ensemble_with_rates_of_its_own_is_the_loop_over_its_members(
    name: str, options: Options
) -> None:
    opts = [make(name, {**options, "lr": torch.tensor(rate)}) for rate in RATES]
    models = [model_for(name, seed) for seed in range(MEMBERS)]
    states = [opt.init(model) for opt, model in zip(opts, models, strict=True)]
    grads = [list(gradients(model, 3, seed=k)) for k, model in enumerate(models)]
    ensemble, state, opt = tree.stack(models), tree.stack(states), tree.stack(opts)
    for k in range(3):
        stacked = tree.stack([member[k] for member in grads])
        ensemble, state = torch.vmap(lambda o, m, g, s: o.step(m, g, s))(
            opt, ensemble, stacked, state
        )
        for j in range(MEMBERS):
            models[j], states[j] = opts[j].step(models[j], grads[j][k], states[j])
    assert same_leaves(tree.stack(models), ensemble)
    assert same_leaves(tree.stack(states), state)


def test_members_of_different_ages_and_a_schedule() -> None:
    opt = optim.Adam(lr=schedules.ExponentialLR(0.1, 0.5))
    models = [model_for("Adam", seed) for seed in range(2)]
    states = [opt.init(model) for model in models]
    grads = list(gradients(models[0], 2))
    models[0], states[0] = opt.step(models[0], grads[0], states[0])
    ensemble, state = torch.vmap(lambda m, s: opt.step(m, grads[1], s))(
        tree.stack(models), tree.stack(states)
    )
    for k in range(2):
        models[k], states[k] = opt.step(models[k], grads[1], states[k])
    assert same_leaves(tree.stack(models), ensemble)
    assert state.step.tolist() == [2, 1]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_of_steps_of_members_of_different_ages(name: str) -> None:
    options = {**dict(FIRST)[name], **({"t0": 3} if name == "ASGD" else {})}
    noises = list(gradients(model_for(name), 8))

    def steps(lr: Tensor, model: Any, state: Any, count: int = 2) -> Any:
        opt = make(name, {**options, "lr": lr, "differentiable": True})
        for noise in noises[:count]:
            model, state = opt.step(model, tree.map(torch.mul, model, noise), state)
        return model, state

    def total(lr: Tensor, model: Any, state: Any) -> Tensor:
        leaves = tree.leaves(steps(lr, model, state))
        return torch.stack([leaf.sum() for leaf in leaves]).sum()

    rate = torch.tensor(0.05)
    pairs = []
    for age in (1, 2, 7):
        model = model_for(name, seed=age)
        state = make(name, {**options, "lr": rate}).init(model)
        pairs.append(steps(rate, model, state, age))
    both = torch.func.grad_and_value(total)
    expected = [
        torch.stack(column) for column in zip(*[both(rate, *p) for p in pairs], strict=True)
    ]
    stacked = [tree.stack(column) for column in zip(*pairs, strict=True)]
    found = torch.vmap(both, (None, 0, 0))(rate, *stacked)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


ALL = [
    *[name for name, _ in FIRST],
    *("Lion", "LAMB", "SGDScheduleFree", "AdamWScheduleFree", "Prodigy"),
]


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_members_step_on_a_device_where_their_rates_are_not(
    name: str, differentiable: bool
) -> None:
    # A vector of rates on the CPU goes with leaves on the CPU alone; "meta" is another device.
    options = {"differentiable": True} if differentiable else {}
    if differentiable and name in ("Muon", "Adafactor"):
        return
    rates = torch.tensor([0.1, 0.2], dtype=torch.float64)
    opt = tree.stack([make(name, {**options, "lr": rate}) for rate in rates])
    model = Point(torch.zeros(2, 3, 2, device="meta"))
    state = torch.vmap(lambda o, m: o.init(m))(opt, model)
    for _ in range(2):
        model, state = torch.vmap(lambda o, m, s: o.step(m, m, s))(opt, model, state)
    assert model.at.is_meta and model.at.shape == (2, 3, 2) and model.at.dtype is torch.float32


def test_vmap_in_vmap() -> None:
    rates = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    model = model_for("Adam")
    grads = next(gradients(model, 1))
    state = optim.Adam().init(model)

    def step(lr: Tensor) -> Any:
        return optim.Adam(lr=lr).step(model, grads, state)[0]

    stepped = torch.vmap(torch.vmap(step))(rates)
    for i in range(2):
        for j in range(2):
            alone = step(rates[i, j])
            assert same_leaves(tree.map(lambda leaf, i=i, j=j: leaf[i, j], stepped), alone)


def test_a_whole_training_step_of_an_ensemble() -> None:
    opt, x = optim.AdamW(lr=0.05), example_input()

    def train(model: Any, state: Any) -> Any:
        grads = func.grad(lambda net: net(x).square().mean())(model)
        return opt.step(model, grads, state)

    models = [MLP().initialize(seed) for seed in range(2)]
    pairs = [(model, opt.init(model)) for model in models]
    stacked = tree.stack([p[0] for p in pairs]), tree.stack([p[1] for p in pairs])
    for _ in range(3):
        stacked = torch.vmap(train)(*stacked)
        pairs = [train(*pair) for pair in pairs]
    for mine, theirs in zip(
        tree.leaves(stacked[0]), tree.leaves(tree.stack([p[0] for p in pairs])), strict=True
    ):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


# -- derivatives of steps --------------------------------------------------------------------------


def three_steps(name: str) -> Any:
    """A loss of a rate and a factor, of a model that both went into."""
    start = model_for(name, dtype=torch.float64)
    noises = list(gradients(start, 3))

    def loss(lr: Tensor, scale: Tensor) -> Tensor:
        options = {**dict(FIRST)[name], **({"t0": 1} if name == "ASGD" else {})}
        opt = make(name, {**options, "lr": lr, "differentiable": True})
        model, state = tree.map(lambda p: p * scale, start), opt.init(start)
        for noise in noises:
            model, state = opt.step(model, tree.map(torch.mul, noise, model), state)
        return sum([leaf.square().sum() for leaf in tree.leaves(model)], torch.zeros(()))

    return loss


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_gradients_through_rate_and_model_are_exact(name: str) -> None:
    given = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.03, 1.1)]
    loss = three_steps(name)
    assert torch.autograd.gradcheck(loss, given)
    by_tape = torch.autograd.grad(loss(*given), given)
    by_transform = torch.func.grad(loss, argnums=(0, 1))(*[value.detach() for value in given])
    for one, two in zip(by_tape, by_transform, strict=True):
        assert torch.allclose(one, two, rtol=1e-10)


def test_meta_gradients_of_complex_leaves_that_are_averaged_are_those_of_pairs_of_numbers() -> None:
    start = torch.tensor([1.0 + 2.0j, -0.5j], dtype=torch.complex128)
    factors = (1.0, 0.5j, -2.0)

    def mean_and_derivative(as_leaf: Any) -> tuple[Tensor, Tensor]:
        rate = torch.tensor(0.03, dtype=torch.float64, requires_grad=True)
        opt = optim.ASGD(lr=rate, t0=1, lambd=0.1, weight_decay=0.1, differentiable=True)
        model = Point(as_leaf(start))
        state = opt.init(model)
        for factor in factors:
            model, state = opt.step(model, Point(as_leaf(start * factor)), state)
        mean: Tensor = state.moments["ax"].at
        return mean.detach(), torch.autograd.grad(mean.abs().square().sum(), rate)[0]

    mean, derivative = mean_and_derivative(torch.clone)
    expected = mean_and_derivative(torch.view_as_real)
    torch.testing.assert_close(torch.view_as_real(mean), expected[0])
    torch.testing.assert_close(derivative, expected[1])


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_meta_gradients_of_an_ensemble_with_rates_of_its_own_are_those_of_the_loop(
    name: str,
) -> None:
    rates = torch.tensor(RATES, dtype=torch.float64)
    scales = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64)
    loss = three_steps(name)
    by_transform = torch.vmap(torch.func.grad(loss, argnums=(0, 1)))(rates, scales)
    given = rates.clone().requires_grad_(), scales.clone().requires_grad_()
    by_tape = torch.autograd.grad(torch.vmap(loss)(*given).sum(), given)
    for k in range(MEMBERS):
        one = [value[k].clone().requires_grad_() for value in (rates, scales)]
        expected = torch.autograd.grad(loss(*one), one)
        for index in (0, 1):
            assert torch.allclose(by_transform[index][k], expected[index], rtol=1e-10)
            assert torch.allclose(by_tape[index][k], expected[index], rtol=1e-10)


@pytest.mark.parametrize("options", [o for n, o in OPTIONS if n == "SGD"], ids=label)
def test_momentum_keeps_the_graph_of_its_first_gradient(options: Options) -> None:
    # torch.optim detaches the first gradient that enters a momentum.
    start = model_for("SGD", dtype=torch.float64)

    def loss(scale: Tensor) -> Tensor:
        opt = make("SGD", {**options, "differentiable": True})
        model, state = start, opt.init(start)
        for noise in gradients(start, 3):
            model, state = opt.step(model, tree.map(lambda g: g * scale, noise), state)
        return sum([leaf.square().sum() for leaf in tree.leaves(model)], torch.zeros(()))

    assert torch.autograd.gradcheck(
        loss, torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    )


def test_a_differentiable_step_has_the_numbers_of_one_that_is_not() -> None:
    for name in DIFFERENTIABLE:
        options = dict(FIRST)[name]
        model = model_for(name, dtype=torch.float64)
        grads = list(gradients(model, 3))
        results = []
        for differentiable in (False, True):
            opt = make(name, {**options, "differentiable": differentiable})
            end, state = model, opt.init(model)
            for grad in grads:
                end, state = opt.step(end, grad, state)
            results.append(torch.cat([leaf.reshape(-1) for leaf in tree.leaves(end)]))
        assert distance(results[0], results[1]) <= 1e-6, name


def test_a_step_inside_a_derivative_is_differentiated_and_counts_as_a_constant_elsewhere() -> None:
    model = model_for("Adam")
    grads = next(gradients(model, 1))

    def loss(scale: Tensor, opt: Any) -> Any:
        stepped, _ = opt.step(tree.map(lambda p: p * scale, model), grads, opt.init(model))
        return tree.leaves(stepped)[0].sum() + scale

    one = torch.tensor(1.0)
    asked = torch.func.grad(loss)(one, optim.Adam(differentiable=True))
    assert torch.func.grad(loss)(one, optim.Adam()).item() == asked.item() != 1
    scale = torch.ones((), requires_grad=True)
    loss(scale, optim.Adam()).backward()
    assert scale.grad is not None and scale.grad.item() == 1


def test_the_gradients_a_user_holds_are_not_written_by_a_decay_that_requires_grad() -> None:
    # torch's kernels add such a decay to the gradient in place.
    model = model_for("SGD")
    grads = next(gradients(model, 1))
    before = [leaf.clone() for leaf in tree.leaves(grads)]
    opt = optim.SGD(weight_decay=torch.tensor(0.1, requires_grad=True), differentiable=True)
    opt.step(model, grads, opt.init(model))
    assert same_leaves(grads, before)
