"""Compiled steps of many leaves, which are one operator: torch's own numbers, in every use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import init

import parallax
from parallax import Buffer, Module, Parameter, func, optim, tree
from parallax.optim import schedules
from tests.compiling import make_compiled
from tests.optim.cases import HAS_FUSED, OPTIONS, Options, distance, gradients, label, make, twin_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

FUSED = [(name, options) for name, options in OPTIONS if name in HAS_FUSED]


class Wide(Module):
    """More leaves than are stepped one by one, and a buffer of whole numbers."""

    leaves: tuple[Parameter | None, ...]
    count: Buffer

    def __init__(self) -> None:
        super().__init__()
        sizes: Any = [(4, 3), (4,), (2, 4), ()] * 4
        self.leaves = tuple([Parameter(size, init.normal_) for size in sizes])
        self.count = torch.tensor(3)

    def forward(self, x: Tensor) -> Any:
        given = [leaf for leaf in self.leaves if leaf is not None]
        rest = [leaf.square().sum() for leaf in given[4:]]
        first, bias, second, scale = given[:4]
        return scale * (torch.tanh(x @ first.T + bias) @ second.T) + torch.stack(rest).sum()


def wide(dtype: torch.dtype = torch.float32) -> Any:
    return Wide().initialize(0, dtype=dtype)


def slopes(model: Any, steps: int) -> list[Any]:
    """Gradients, with a hole for the buffer."""
    return list(gradients(tree.partition(model, "trainable")[0], steps))


class Recorder:
    """A backend that runs a graph as it is, and remembers what it calls."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def __call__(self, graph: GraphModule, inputs: Any) -> Callable[..., Any]:
        self.called += [str(node.target) for node in graph.graph.nodes]
        return graph.forward

    @property
    def operators(self) -> int:
        return sum("parallax.step" in name for name in self.called)


def compiled(fn: Callable[..., Any]) -> tuple[Callable[..., Any], Recorder]:
    recorder = Recorder()
    return make_compiled(fn, backend=recorder), recorder


def assert_steps_equal(opt: Any, steps: Sequence[Any], model: Any) -> Recorder:
    """Compares compiled steps with eager ones."""
    step, recorder = compiled(opt.step)
    end, state = model, opt.init(model)
    other, other_state = model, opt.init(model)
    for grads in steps:
        end, state = step(end, grads, state)
        other, other_state = opt.step(other, grads, other_state)
    pairs = zip(tree.leaves((end, state)), tree.leaves((other, other_state)), strict=True)
    assert max([distance(a, b) for a, b in pairs]) <= 1e-6
    return recorder


@pytest.mark.parametrize(("name", "options"), FUSED, ids=label)
def test_the_numbers_are_those_of_torch(name: str, options: Options) -> None:
    opt, model = make(name, options), wide()
    before = [leaf.clone() for leaf in tree.leaves(model)]
    step, recorder = compiled(opt.step)
    end, state = model, opt.init(model)
    twin = twin_of(name, {**options, "fused": True}, tree.partition(model, "trainable")[0])
    for grads in slopes(model, 3):
        given = [leaf.clone() for leaf in tree.leaves(grads)]
        end, state = step(end, grads, state)
        twin.step(grads)
        assert all(map(torch.equal, tree.leaves(grads), given))
    for path, leaf in tree.named_leaves(tree.partition(end, "trainable")[0]).items():
        assert distance(leaf, twin.params[path]) <= 1e-6
    # The first momentum is not damped, and that graph is another one.
    assert recorder.operators == 1
    assert all(map(torch.equal, tree.leaves(model), before))
    assert int(end.count) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HAS_FUSED)
def test_other_dtypes(name: str, dtype: torch.dtype) -> None:
    model = wide(dtype)
    recorder = assert_steps_equal(make(name, {"lr": 0.1}), slopes(model, 2), model)
    # torch's fused kernel of SGD is wrong for halves on the CPU.
    assert recorder.operators == (name != "SGD" or dtype is torch.float64)


def test_what_is_said_of_some_leaves() -> None:
    # A schedule and a group, a frozen leaf, a tie, and gradients that are missing now and then.
    rate = schedules.WarmupCosineLR(0.5, 3, 10)
    opt = optim.AdamW(lr=rate, groups={lambda path, p: p.ndim == 1: {"lr": torch.tensor(0.3)}})
    model = tree.select(wide(), "leaves.2").freeze()
    model = tree.select(model, "leaves.4").set(model.leaves[0])
    steps = slopes(model, 4)
    steps[1] = tree.select(steps[1], "leaves.5").set(None)
    assert assert_steps_equal(opt, steps, model).operators


def test_new_rates_make_no_new_graph() -> None:
    def by_tensor(lr: Tensor, model: Any, grads: Any, state: Any) -> Any:
        return optim.Adam(lr=lr, betas=(0.9, torch.tensor(0.99))).step(model, grads, state)

    def by_number(lr: float, model: Any, grads: Any, state: Any) -> Any:
        return optim.Adam(lr=lr).step(model, grads, state)

    model = wide()
    for fn, kind, graphs in ((by_tensor, torch.tensor, 1), (by_number, float, 2)):
        step, recorder = compiled(fn)
        state = optim.Adam().init(model)
        for k, grads in enumerate(slopes(model, 4)):
            rate: Any = kind(0.01 * (k + 1))
            one, two = step(rate, model, grads, state), fn(rate, model, grads, state)
            pairs = zip(tree.leaves(one), tree.leaves(two), strict=True)
            assert max([distance(a, b) for a, b in pairs]) <= 1e-6
        # A number is a constant of the first graph, and an input of the second.
        assert recorder.called.count("output") == graphs
        assert recorder.operators == 1


def test_gradients_that_are_views_of_what_is_stepped() -> None:
    model = wide()
    opt = optim.Adam(lr=0.1)

    def step(model: Any, state: Any) -> Any:
        turned = tree.map(lambda p: p.flip(0) if p.ndim else p, model)
        return opt.step(model, tree.partition(turned, "trainable")[0], state)

    one, two = compiled(step)[0](model, opt.init(model)), step(model, opt.init(model))
    pairs = zip(tree.leaves(one), tree.leaves(two), strict=True)
    assert max([distance(a, b) for a, b in pairs]) <= 1e-6


def test_vmapped_and_differentiated_steps_go_leaf_by_leaf() -> None:
    model = wide()
    grads = slopes(model, 1)[0]
    opt = optim.SGD(lr=0.1, momentum=0.9)
    two = tree.stack([model, tree.map(lambda p: 2 * p, model)])
    step, recorder = compiled(lambda m: func.vmap(lambda m: opt.step(m, grads, opt.init(m))[0])(m))
    for k, end in enumerate(tree.unstack(step(two))):
        alone = opt.step(tree.unstack(two)[k], grads, opt.init(model))[0]
        pairs = zip(tree.leaves(end), tree.leaves(alone), strict=True)
        assert max([distance(a, b) for a, b in pairs]) <= 1e-6
    assert recorder.operators == 0

    def after(factor: Tensor) -> Tensor:
        opt = optim.SGD(lr=0.1, differentiable=True)
        end = opt.step(model, tree.map(lambda g: factor * g, grads), opt.init(model))[0]
        return torch.stack([leaf.sum() for leaf in end.leaves]).sum()

    slope, recorder = compiled(func.grad(after))
    expected = -0.1 * sum([float(grad.sum()) for grad in grads.leaves])
    assert float(slope(torch.tensor(2.0))) == pytest.approx(expected, rel=1e-5)
    assert recorder.operators == 0


def test_an_optimizer_of_ones_own_is_not_taken_for_torch_s() -> None:
    class Adam(optim.Adam):
        def _kernel(self, at: Any, h: Any, how: Any) -> Any:
            return super()._kernel(at, {**h, "lr": 10 * h["lr"]}, how)

    model = wide()
    assert assert_steps_equal(Adam(lr=0.1), slopes(model, 1), model).operators == 0


def test_an_operator_that_is_not_asked_for() -> None:
    model = wide()
    steps = slopes(model, 1)
    assert assert_steps_equal(optim.Adam(fused=False), steps, model).operators == 0
    assert assert_steps_equal(optim.Adam(foreach=True), steps, model).operators == 0
    assert assert_steps_equal(optim.Adam(fused=True), steps, model).operators == 1


@pytest.mark.slow
def test_whole_steps_on_the_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def written_in_python(error: RuntimeError) -> bool:
        raise error

    # Not even tried: the code around the kernels is C++ at once.
    monkeypatch.setattr("parallax.compiler.graph.is_cpp_failure", written_in_python)
    optimizers = [make(name, {"lr": 0.05}) for name in HAS_FUSED]
    optimizers += [optim.SGD(lr=0.05, momentum=0.9), optim.Adam(lr=0.05, amsgrad=True)]
    x = torch.randn(5, 3)

    def train(model: Any, states: Any) -> Any:
        grads = func.grad(lambda model: model(x).square().mean())(model)
        clipped = optim.ClipNorm(1.0)(grads)
        return [opt.step(model, clipped, s) for opt, s in zip(optimizers, states, strict=True)]

    model = wide()
    step = parallax.compile(train)
    states = [opt.init(model) for opt in optimizers]
    for _ in range(2):
        mine, theirs = step(model, states), train(model, states)
        for a, b in zip(tree.leaves(mine), tree.leaves(theirs), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        (model, _), states = theirs[2], [state for _, state in theirs]
