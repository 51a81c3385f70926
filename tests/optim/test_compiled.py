"""Compiled steps: one graph, the numbers of eager code, and new rates in the same graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn import init

import parallax
from parallax import Module, Parameter, func, optim, tree
from parallax.optim import schedules
from tests.corpus import MLP, example_input
from tests.optim.cases import OPTIONS, Options, distance, gradients, label, make, model_for

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Few(Module):
    """A matrix, which Adafactor factors, and a number, which it does not."""

    matrix: Parameter
    scale: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.matrix = Parameter((4, 3), init.normal_)
        self.scale = Parameter((), init.ones_)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=label)
def test_a_step_is_one_graph_and_new_rates_do_not_make_another(name: str, options: Options) -> None:
    counter = torch._dynamo.testing.CompileCounter()

    @torch.compile(fullgraph=True, backend=counter)
    def step(lr: Tensor, model: Any, grads: Any, state: Any) -> Any:
        return make(name, {**options, "lr": lr}).step(model, grads, state)

    model = end = model_for(name) if name == "Muon" else Few().initialize(0)
    state = end_state = make(name, options).init(model)
    if options.get("dampening"):  # the first momentum is another computation
        grads = next(gradients(model, 1, seed=5))
        model, state = end, end_state = make(name, options).step(model, grads, state)
    for k, grads in enumerate(gradients(model, 4)):
        lr = torch.tensor(0.01 * (k + 1))
        end, end_state = step(lr, end, grads, end_state)
        model, state = make(name, {**options, "lr": lr}).step(model, grads, state)
    assert counter.frame_count == 1
    for mine, theirs in zip(
        tree.leaves((end, end_state)), tree.leaves((model, state)), strict=True
    ):
        assert distance(mine, theirs) <= 1e-6


def test_a_schedule_is_part_of_the_graph() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    opt = optim.SGD(lr=schedules.WarmupCosineLR(0.5, 3, 10))
    step = torch.compile(opt.step, fullgraph=True, backend=counter)
    model = end = model_for("SGD")
    state = end_state = opt.init(model)
    for grads in gradients(model, 6):
        end, end_state = step(end, grads, end_state)
        model, state = opt.step(model, grads, state)
    assert counter.frame_count == 1
    assert (
        max(distance(a, b) for a, b in zip(tree.leaves(end), tree.leaves(model), strict=True))
        < 1e-6
    )


# Not Rprop, of which the rate is only the first size of a step, and at least 1e-6.
@pytest.mark.parametrize("name", sorted({name for name, _ in OPTIONS} - {"Rprop"}))
def test_a_rate_of_zero_moves_nothing(name: str) -> None:
    model = model_for(name)
    # Some entries have never had a gradient, so their second moment is zero, too.
    grads = tree.map(lambda g: torch.where(g > 0, g, 0.0), next(gradients(model, 1)))

    def step(lr: Any, model: Any) -> Any:
        opt = make(name, {"lr": lr})
        return opt.step(model, grads, opt.init(model))[0]

    compiled = torch.compile(step, fullgraph=True, backend="eager")
    assert tree.equal(step(torch.tensor(0.0), model), model)
    assert tree.equal(compiled(torch.tensor(0.0), model), model)
    if name == "Adam":
        assert tree.equal(compiled(0.0, model), model)


def test_a_warm_up_from_zero_is_right_in_compiled_code() -> None:
    opt = optim.AdamW(lr=schedules.WarmupCosineLR(0.5, 3, 10), groups={"**.bias": {"lr": 0.1}})
    step = parallax.compile(opt.step, backend="eager")
    model = end = model_for("AdamW")
    state = end_state = opt.init(model)
    for grads in gradients(model, 3):
        grads = tree.map(lambda g: torch.where(g > 0, g, 0.0), grads)  # noqa: PLW2901  # some none
        end, end_state = step(end, grads, end_state)
        model, state = opt.step(model, grads, state)
    for mine, theirs in zip(tree.leaves(end), tree.leaves(model), strict=True):
        assert distance(mine, theirs) < 1e-6


def test_the_whole_training_step_is_one_graph() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    x = example_input()
    opt = optim.chain(optim.ClipNorm(1.0), optim.AdamW(lr=0.05, groups={"**.bias": {"lr": 0.1}}))

    def train(model: Any, state: Any) -> Any:
        grads = func.grad(lambda net: net(x).square().mean())(model)
        return opt.step(model, grads, state)

    compiled = torch.compile(train, fullgraph=True, backend=counter)
    model = end = MLP().initialize(0)
    state = end_state = opt.init(model)
    for _ in range(4):
        model, state = train(model, state)
        end, end_state = compiled(end, end_state)
    assert counter.frame_count == 1
    for mine, theirs in zip(tree.leaves(end), tree.leaves(model), strict=True):
        assert distance(mine, theirs) <= 1e-5


def test_parallax_compile_takes_the_optimizer_as_an_argument() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    x = example_input()

    def train(opt: Any, model: Any, state: Any, x: Tensor) -> Any:
        grads = func.grad(lambda net: net(x).square().mean())(model)
        return opt.step(model, grads, state)

    compiled = parallax.compile(train, backend=counter)
    model = end = MLP().initialize(0)
    opt = optim.AdamW(lr=torch.tensor(0.1))
    state = end_state = opt.init(model)
    for k in range(4):
        opt = opt.replace(lr=torch.tensor(0.1 / (k + 1)))
        model, state = train(opt, model, state, x)
        end, end_state = compiled(opt, end, end_state, x)
    assert counter.frame_count == 1
    for mine, theirs in zip(tree.leaves(end), tree.leaves(model), strict=True):
        assert distance(mine, theirs) <= 1e-5


def test_holes_and_frozen_leaves_under_compile() -> None:
    model: Any = tree.select(MLP().initialize(0), "first.weight").freeze()
    opt = optim.AdamW(lr=0.1)
    grads = tree.map(torch.ones_like, tree.partition(model, "second.bias")[1])
    state = opt.init(model)
    compiled = torch.compile(opt.step, fullgraph=True, backend="eager")
    mine: Any
    theirs: Any
    mine, mine_state = compiled(model, grads, state)
    theirs, theirs_state = opt.step(model, grads, state)
    assert torch.equal(mine.first.weight, model.first.weight)
    assert torch.equal(mine.second.bias, model.second.bias)
    assert mine_state.clock_of == theirs_state.clock_of
    assert distance(mine.first.bias, theirs.first.bias) <= 1e-6
