"""What a step leaves alone, and what it counts: holes, frozen leaves, ties, modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import parallax
from parallax import optim, tree
from tests.comparing import same_leaves
from tests.corpus import MLP, Norm, TiedParameter, example_input
from tests.optim.cases import (
    FIRST,
    Net,
    Options,
    distance,
    gradients,
    label,
    make,
    model_for,
    ones,
    twin_of,
)


def test_a_hole_leaves_the_leaf_and_its_moments_alone() -> None:
    model, opt = Net().initialize(0), optim.AdamW(lr=0.1)
    state = opt.init(model)
    model, state = opt.step(model, ones(model), state)
    after, later = opt.step(model, tree.partition(ones(model), "bias")[1], state)
    assert after.bias is model.bias
    assert later.moments["exp_avg"].bias is state.moments["exp_avg"].bias
    assert not torch.equal(after.first, model.first)


@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_leaves_that_miss_steps_age_as_parameters_of_torch_do(name: str, options: Options) -> None:
    model, opt = model_for(name), make(name, options)
    twin, state = twin_of(name, options, model), opt.init(model)
    paths = list(tree.named_leaves(model))
    missing = [[], [paths[0]], [paths[0], paths[1]], [], [paths[1]], paths, [paths[0]], []]
    for grads, gone in zip(gradients(model, len(missing)), missing, strict=True):
        if gone:
            grads = tree.partition(grads, *gone)[-1]  # noqa: PLW2901  # the same, with holes
        model, state = opt.step(model, grads, state)
        twin.step(grads)
    for path, leaf in tree.named_leaves(model).items():
        assert distance(leaf, twin.params[path]) <= 1e-6
    assert state.step.item() == len(missing)


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize(("name", "options"), FIRST, ids=label)
def test_leaves_that_begin_late_begin_at_the_rate_of_that_step(
    name: str, options: Options, donate: bool
) -> None:
    rate = optim.schedules.ExponentialLR(0.1, 0.5)
    model, opt = model_for(name), make(name, {**options, "lr": rate})
    twin, state = twin_of(name, {**options, "lr": 0.1}, model), opt.init(model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(twin.optimizer, 0.5)
    first, second, *_ = tree.named_leaves(model)
    missing = [[first, second], [first], [], [second], []]
    for grads, gone in zip(list(gradients(model, len(missing))), missing, strict=True):
        if gone:
            grads = tree.partition(grads, *gone)[-1]  # noqa: PLW2901  # the same, with holes
        model, state = opt.step(model, grads, state, donate=donate)
        twin.step(grads)
        schedule.step()
    for path, leaf in tree.named_leaves(model).items():
        assert distance(leaf, twin.params[path]) <= 1e-5


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", ["ASGD", "Rprop"])
def test_so_they_do_in_compiled_code_and_under_vmap(name: str) -> None:
    opt = make(name, {"lr": optim.schedules.ExponentialLR(0.1, 0.5)})
    model = model_for(name)

    def trained(model: Any) -> Any:
        state = opt.init(model)
        for k in range(3):
            grads = tree.map(torch.sin, model)
            grads = tree.partition(grads, "bias")[1] if k == 0 else grads
            model, state = opt.step(model, grads, state)
        return model

    expected = trained(model)
    compiled = parallax.compile(trained, backend="eager")(model)
    mapped = tree.unstack(torch.vmap(trained)(tree.stack([model, model])))[1]
    for found in (compiled, mapped):
        for leaf, other in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(leaf, other, rtol=1e-5, atol=1e-6)


def test_a_steady_pattern_of_holes_needs_no_more_clocks_than_there_are_patterns() -> None:
    model, opt = Net().initialize(0), optim.Adam()
    state = opt.init(model)
    for k in range(20):
        grads = tree.partition(ones(model), "bias")[1] if k % 2 else ones(model)
        model, state = opt.step(model, grads, state)
    assert len(state.clocks) == 1
    assert [state.step.item(), state.clocks[0].item()] == [20, 10]


def test_frozen_parameters_and_buffers_are_neither_stepped_nor_decayed() -> None:
    model = tree.select(Norm().initialize(0), "weight").freeze()
    opt = optim.AdamW(lr=0.1, weight_decay=0.5)
    state = opt.init(model)
    assert state.moments["exp_avg"].weight is None
    assert state.moments["exp_avg"].running_mean is None
    # Even where raw code gives them gradients.
    stepped, _ = opt.step(model, ones(model), state)
    for name in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        assert getattr(stepped, name) is getattr(model, name)
    assert not torch.equal(stepped.bias, model.bias)


def test_a_tied_leaf_is_stepped_once_and_stays_tied() -> None:
    model = TiedParameter().initialize(0)
    opt = optim.SGD(lr=1.0)
    stepped, _ = opt.step(model, ones(model), opt.init(model))
    assert stepped.encoder.weight is stepped.decoder.weight
    assert torch.equal(stepped.encoder.weight, model.encoder.weight - 1)


def test_a_state_fits_after_train_eval_reset_and_freeze() -> None:
    model = MLP().initialize(0)
    opt = optim.Adam(lr=0.1)
    state = opt.init(model)
    expected, _ = opt.step(model, ones(model), state)
    for other in (model.train(1), model.eval(), model.reset(2)):
        assert same_leaves(opt.step(other, ones(model), state)[0], expected)
    frozen = tree.select(model, "first").freeze()
    stepped, later = opt.step(frozen, ones(model), state)
    assert stepped.first.weight is model.first.weight
    assert torch.equal(stepped.second.weight, expected.second.weight)
    # And moments made while a leaf was frozen begin when it no longer is.
    late = opt.init(frozen)
    assert late.moments["exp_avg"].first.weight is None
    unfrozen, late = opt.step(model, ones(model), opt.step(frozen, ones(model), late)[1])
    assert torch.equal(unfrozen.first.weight, expected.first.weight)
    assert late.moments["exp_avg"].first.weight is not None
    assert later.step.item() == 1


def test_what_reset_and_backward_leave_can_be_stepped() -> None:
    model, opt = MLP().initialize(0), optim.SGD(lr=0.01)
    state, x = opt.init(model), example_input()
    losses = []
    for seed in range(5):
        model = model.reset(seed)
        loss = model(x).square().sum()
        loss.backward()
        losses.append(loss.item())
        model, state = opt.step(model, model.grad(), state)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("by", ["parallax", "torch", "torch, dynamic"])
def test_compiled_steps_go_on_after_a_leaf_has_missed_one(by: str) -> None:
    opt, model = optim.SGD(lr=0.5, momentum=0.5), Net().initialize(0)
    whole = tree.map(torch.ones_like, model)
    part = tree.partition(whole, "bias")[1]
    dynamic = True if "dynamic" in by else None
    step: Any = (
        parallax.compile(opt.step, backend="eager")
        if by == "parallax"
        else torch.compile(opt.step, backend="eager", dynamic=dynamic, fullgraph=True)
    )
    start, state = model, opt.init(model)
    for grads in (part, whole, part, whole):
        model, state = step(model, grads, state)
    assert torch.allclose(model.first, start.first - 0.5 * (1 + 1.5 + 1.75 + 1.875))
    assert torch.allclose(model.bias, start.bias - 0.5 * (1 + 1.5))
