"""Optimizers that torch does not have, against loops over numbers."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import parallax
from parallax import optim, tree
from parallax.optim import schedules
from tests.comparing import same_leaves
from tests.optim import published
from tests.optim.cases import Net, Options, Point, distance, gradients, label, ones

STEPS = 12

OPTIONS: list[tuple[str, Options]] = [
    ("Lion", {"lr": 0.03}),
    ("Lion", {"lr": 0.03, "betas": (0.5, 0.8), "weight_decay": 0.1, "maximize": True}),
    ("LAMB", {"lr": 0.03}),
    ("LAMB", {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    ("SGDScheduleFree", {"lr": 0.1}),
    ("SGDScheduleFree", {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, "r": 1.0}),
    ("AdamWScheduleFree", {"lr": 0.05}),
    ("AdamWScheduleFree", {"lr": 0.05, "weight_decay": 0.2, "weight_lr_power": 1.0}),
    ("Prodigy", {"d0": 1e-2}),
    ("Prodigy", {"d0": 1e-2, "weight_decay": 0.2, "use_bias_correction": True, "beta3": 0.9}),
    ("Prodigy", {"d0": 1e-2, "weight_decay": 0.2, "decoupled_weight_decay": False,
                 "safeguard_warmup": True, "growth_rate": 1.05, "d_coef": 0.5}),
]  # fmt: skip
FIRST = list(dict(reversed(OPTIONS)).items())
"""One entry per optimizer."""


def make(name: str, options: Options) -> Any:
    return getattr(optim, name)(**options)


def run(opt: Any, model: Any, steps: Any) -> tuple[Any, Any]:
    state = opt.init(model)
    for grads in steps:
        model, state = opt.step(model, grads, state)
    return model, state


def rows(model: Any) -> list[list[float]]:
    return [leaf.flatten().tolist() for leaf in tree.leaves(model)]


def by_hand(name: str, options: Options, lr: Any, model: Any, steps: Any) -> tuple[Any, Any]:
    """The parameters in the end, and what else is to be compared."""
    sign = -1.0 if options.get("maximize") else 1.0
    lists = [rows(tree.scale(grads, sign)) for grads in steps]
    rest = {k: v for k, v in options.items() if k not in ("lr", "maximize")}
    if name == "Lion":
        return published.lion(rows(model), lists, lr, **rest), None
    if name == "LAMB":
        return published.lamb(rows(model), lists, lr, **rest), None
    if name == "Prodigy":
        return published.prodigy(rows(model), lists, lr, **rest)
    rest = {"betas": (0.9, 0.999), **rest}
    return published.schedule_free(rows(model), lists, lr, name.startswith("Adam"), **rest)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=label)
@pytest.mark.parametrize("warmup", [False, True])
def test_the_numbers_are_those_of_the_published_loops(
    name: str, options: Options, warmup: bool
) -> None:
    rate = options.get("lr", 1.0)
    lr = schedules.LinearLR(rate, 0.0, 1.0, 4) if warmup else None
    opt = make(name, {**options, "lr": lr} if warmup else options)
    model = Net().initialize(0, dtype=torch.float64)
    steps = list(gradients(model, STEPS))
    expected, more = by_hand(name, options, lr or (lambda t: rate), model, steps)
    model, state = run(opt, model, steps)
    assert_rows(model, expected)
    if name == "Prodigy":
        assert state.numbers["d"].item() == pytest.approx(more, rel=1e-9)
        assert warmup or more > 1e-2
    elif "ScheduleFree" in name:
        assert_rows(opt.averaged(model, state), more)


@pytest.mark.parametrize("growth", [math.inf, 1.3])
def test_the_distance_grows_where_gradients_agree(growth: float) -> None:
    model = Net().initialize(0, dtype=torch.float64)
    options: Options = {"d0": 1e-4, "growth_rate": growth}
    steps = [ones(model)] * 15
    expected, d = by_hand("Prodigy", options, lambda t: 1.0, model, steps)
    model, state = run(optim.Prodigy(**options), model, steps)
    assert_rows(model, expected)
    assert state.numbers["d"].item() == pytest.approx(d, rel=1e-9) and d > 1e-3


def assert_rows(model: Any, expected: Any) -> None:
    for leaf, numbers in zip(tree.leaves(model), expected, strict=True):
        assert torch.allclose(leaf.flatten(), torch.tensor(numbers, dtype=leaf.dtype), rtol=1e-9)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_an_ensemble_with_rates_of_its_own_is_the_loop_over_its_members(
    name: str, options: Options
) -> None:
    opts = [make(name, {**options, "lr": torch.tensor(rate)}) for rate in (0.03, 0.1)]
    models = [Net().initialize(seed) for seed in range(2)]
    steps = [list(gradients(model, 3, seed=k)) for k, model in enumerate(models)]
    ensemble, opt = tree.stack(models), tree.stack(opts)
    state = torch.vmap(lambda o, m: o.init(m))(opt, ensemble)
    for row in zip(*steps, strict=True):
        ensemble, state = torch.vmap(lambda o, m, g, s: o.step(m, g, s))(
            opt, ensemble, tree.stack(list(row)), state
        )
    alone = [run(o, m, grads) for o, m, grads in zip(opts, models, steps, strict=True)]
    for mine, theirs in zip(
        tree.leaves((ensemble, state)), tree.leaves(tree.stack(alone)), strict=True
    ):
        assert distance(mine, theirs) <= 1e-6


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_step_is_one_graph_and_new_rates_do_not_make_another(name: str, options: Options) -> None:
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def step(lr: Tensor, model: Any, grads: Any, state: Any) -> Any:
        return make(name, {**options, "lr": lr}).step(model, grads, state)

    model = end = tree.select(Net().initialize(0), "first").freeze()
    state = end_state = make(name, options).init(model)
    for k, grads in enumerate(gradients(model, 3)):
        lr = torch.tensor(0.01 * (k + 1))
        end, end_state = step(lr, end, grads, end_state)
        model, state = make(name, {**options, "lr": lr}).step(model, grads, state)
    assert counter.frame_count == 1
    for mine, theirs in zip(
        tree.leaves((end, end_state)), tree.leaves((model, state)), strict=True
    ):
        assert distance(mine, theirs) <= 1e-6


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_meta_gradients_through_rate_and_model_are_exact(name: str, options: Options) -> None:
    start = Net().initialize(0, dtype=torch.float64)
    noises = list(gradients(start, 3))

    def loss(lr: Tensor, scale: Tensor) -> Tensor:
        opt = make(name, {**options, "lr": lr, "differentiable": True})
        model, state = tree.map(lambda p: p * scale, start), opt.init(start)
        for noise in noises:
            model, state = opt.step(model, tree.map(torch.mul, noise, model), state)
        return sum([leaf.square().sum() for leaf in tree.leaves(model)], torch.zeros(()))

    given = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.03, 1.1)]
    assert torch.autograd.gradcheck(loss, given)
    by_tape = torch.autograd.grad(loss(*given), given)
    detached = [value.detach() for value in given]
    by_transform = torch.func.grad(loss, argnums=(0, 1))(*detached)
    for one, two in zip(by_tape, by_transform, strict=True):
        assert torch.allclose(one, two, rtol=1e-10)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_holes_frozen_leaves_and_what_is_given_away(name: str, options: Options) -> None:
    opt, model = make(name, options), tree.select(Net().initialize(0), "first").freeze()
    state = opt.init(model)
    grads = list(gradients(model, 3))
    grads[1] = tree.partition(grads[1], "bias")[1]
    before = [leaf.clone() for leaf in tree.leaves((model, state))]
    end, end_state = model, state
    for grad in grads:
        bias: Any = end
        end, end_state = opt.step(end, grad, end_state)
        if grad is grads[1]:
            assert end.bias is bias.bias
    assert end.first is model.first and end_state.clocks[0].item() == 2
    assert not any(leaf.requires_grad for leaf in tree.leaves((end, end_state)))
    kept = zip(tree.leaves((model, state)), before, strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    given, given_state = tree.map(torch.clone, model), opt.init(model)
    for grad in grads:
        address = given.second.data_ptr()
        given, given_state = opt.step(given, grad, given_state, donate=True)
        assert given.second.data_ptr() == address
    assert same_leaves((given, given_state), (end, end_state))


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_halves_and_complex_numbers(name: str, options: Options) -> None:
    opt = make(name, options)
    plain = Net().initialize(0)
    for half in (torch.float16, torch.bfloat16):
        model = tree.to(plain, dtype=half)
        grads = next(gradients(model, 1))
        stepped, state = opt.step(model, grads, opt.init(model))
        single, _ = run(
            opt, tree.to(model, dtype=torch.float32), [tree.to(grads, dtype=torch.float32)]
        )
        assert same_leaves(stepped, tree.to(single, dtype=half))  # one rounding, in the end
        assert all(leaf.dtype is half for leaf in tree.leaves(state.moments) if leaf.ndim)
    pair = torch.tensor([[1.0, 2.0], [-0.5, 0.3]])
    one, _ = run(opt, Point(pair), [Point(pair * k) for k in (1.0, 0.5, -2.0)])
    number = torch.view_as_complex(pair)
    two, _ = run(opt, Point(number), [Point(number * k) for k in (1.0, 0.5, -2.0)])
    assert torch.allclose(torch.view_as_real(two.at), one.at)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_a_run_is_resumed_from_a_file(name: str, options: Options, tmp_path: Path) -> None:
    opt, model = make(name, options), Net().initialize(0)
    state = opt.init(model)
    steps = list(gradients(model, 5))
    steps[1] = tree.partition(steps[1], "bias")[1]
    for grads in steps[:3]:
        model, state = opt.step(model, grads, state)
    parallax.io.save({"model": model, "state": state}, tmp_path / "run.pt")
    blank = Net().initialize(7)
    loaded = parallax.io.load(tmp_path / "run.pt", like={"model": blank, "state": opt.init(blank)})
    other, resumed = loaded["model"], pickle.loads(pickle.dumps(loaded["state"]))
    for grads in steps[3:]:
        model, state = opt.step(model, grads, state)
        other, resumed = opt.step(other, grads, resumed)
    assert same_leaves((other, resumed), (model, state))


def test_groups_have_options_of_their_own() -> None:
    model = Net().initialize(0, dtype=torch.float64)
    steps = list(gradients(model, 6))
    decay = {"bias": {"weight_decay": 0.0}}
    for name in ("Lion", "LAMB", "AdamWScheduleFree"):
        mine, state = run(
            make(name, {"lr": 0.1, "weight_decay": 0.5, "groups": decay}), model, steps
        )
        some, _ = run(make(name, {"lr": 0.1, "weight_decay": 0.5}), model, steps)
        others, _ = run(make(name, {"lr": 0.1, "weight_decay": 0.0}), model, steps)
        assert torch.equal(mine.first, some.first) and torch.equal(mine.bias, others.bias)
        assert set(state.labels) == {0, 1}
    # One estimate for all leaves, whatever the groups: of the loop, which decays no leaf here.
    both = {"first": {"weight_decay": 0.0}, "second": {"weight_decay": 0.0}, **decay}
    opt = optim.Prodigy(d0=1e-2, weight_decay=0.7, groups={**both, "scale": {"weight_decay": 0.0}})
    mine, state = run(opt, model, steps)
    expected, d = by_hand("Prodigy", {"d0": 1e-2}, lambda t: 1.0, model, steps)
    assert_rows(mine, expected)
    assert state.numbers["d"].item() == pytest.approx(d, rel=1e-9)


def test_averages_of_what_is_trained() -> None:
    opt = optim.SGDScheduleFree(lr=0.1)
    model: Any = tree.select(Net().initialize(0), "first").freeze()
    start = model
    state = opt.init(model)
    for grads in gradients(model, 3):
        model, state = opt.step(model, grads, state)
    average = opt.averaged(model, state)
    assert average.first is model.first and type(average) is Net
    assert not torch.equal(average.second, model.second)
    assert torch.allclose(opt.averaged(start, opt.init(start)).second, start.second)
    compiled = torch.compile(opt.averaged, backend="eager", fullgraph=True)
    assert distance(compiled(model, state).second, average.second) <= 1e-6
    torch._dynamo.reset()
    with pytest.raises(ValueError, match=r"SGDScheduleFree.averaged: the state was made by optim"):
        opt.averaged(model, optim.SGD().init(model))
    with pytest.raises(TypeError, match=r"averaged: the state must be what init returned"):
        opt.averaged(model, None)  # type: ignore[arg-type]  # that is what is tested


# -- bad input -------------------------------------------------------------------------------------

WRONG: list[tuple[str, Options, type[Exception], str]] = [
    ("Lion", {"lr": -1.0}, ValueError, "optim.Lion: lr must be 0 or more, got -1.0. Write"),
    ("Lion", {"betas": (0.9, 1.0)}, ValueError, "each of betas must be from 0 to below 1, got 1.0"),
    ("Lion", {"lr": "fast"}, TypeError, "optim.Lion: lr must be a number, a tensor"),
    ("LAMB", {"eps": -1.0}, ValueError, "eps must be 0 or more"),
    ("LAMB", {"groups": {"bias": {"lr": -1}}}, ValueError, r"in groups\['bias'\]: .*lr must be 0"),
    ("SGDScheduleFree", {"momentum": 1.0}, ValueError, "momentum must be between 0 and 1, got"),
    ("AdamWScheduleFree", {"betas": (0.0, 0.9)}, ValueError, "the first of betas must be between"),
    ("Prodigy", {"d0": 0.0}, ValueError, "d0 must be above 0, got 0.0"),
    ("Prodigy", {"beta3": 1.0}, ValueError, "beta3 must be from 0 to below 1, got 1.0"),
    ("Prodigy", {"groups": {"bias": {"lr": 0.1}}}, ValueError, "lr holds for all leaves"),
    ("SGDScheduleFree", {"momentum": schedules.StepLR(0.9, 3)}, ValueError,
     "momentum must be one number for all steps.*Write momentum=0.9"),
    ("AdamWScheduleFree", {"betas": (schedules.StepLR(0.9, 3), 0.99)}, TypeError,
     r"betas must be numbers .* Write optim.AdamWScheduleFree\(betas=\(0.9, 0.999\)\)"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "error", "message"), WRONG, ids=label)
def test_bad_options_are_refused(
    name: str, options: Options, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(name, options)


def test_sparse_gradients_are_refused() -> None:
    point = Point(torch.ones(4, 2))
    sparse = torch.eye(4, 2).to_sparse()
    for name, options in FIRST:
        opt = make(name, options)
        with pytest.raises(ValueError, match=r"Make it dense first"):
            opt.step(point, Point(sparse), opt.init(point))
        opt.step(point, ones(point), opt.init(point))
