"""``torch.compile(fullgraph=True)`` with modules in and modules out: the numbers of eager code.

In this folder every test counts the frames that dynamo compiles: a graph that is compiled again for
each new instance is as wrong as one that computes something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import functional_call

from parallax import tree
from tests.comparing import assert_close_trees
from tests.compiling import compiled
from tests.corpus import MLP, TIED, TWINS, Case, Dense, Norm, TiedParameter
from tests.interop.compile.steps import CALLABLE, INPUT, raw_step, step

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("case", CALLABLE, ids=str)
def test_a_forward_equals_eager(case: Case) -> None:
    module = case.make()
    fn, counter = compiled(lambda m, x: m(x))
    torch.testing.assert_close(fn(module, INPUT), module(INPUT))
    assert counter.frame_count == 1


STEPS = [(step, case) for case in CALLABLE]
STEPS += [
    (raw_step, case) for case in CALLABLE if case.name in ("no_biases", "nested", "tied_module")
]


@pytest.mark.parametrize(("take_step", "case"), STEPS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_five_steps_are_one_graph(take_step: Callable[..., Any], case: Case) -> None:
    fn, counter = compiled(take_step)
    module = expected = case.make()
    for _ in range(5):
        module, expected = fn(module, INPUT), take_step(expected, INPUT)
        assert_close_trees(module, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["branches", "no_biases", "tied_parameter", "tied_module"])
def test_a_compiled_step_equals_the_step_of_the_twin(name: str) -> None:
    case = next(case for case in TWINS if case.name == name)
    module = case.make()
    twin = case.twin(module)
    parameters = {name: p.detach() for name, p in twin.named_parameters()}
    grads = torch.func.grad(lambda p: torch.cos(functional_call(twin, p, (INPUT,))).sum())(
        parameters
    )
    expected = {name: p - 0.1 * grads[name] for name, p in parameters.items()}
    fn, _ = compiled(step)
    torch.testing.assert_close(tree.named_leaves(fn(module, INPUT)), expected)


@pytest.mark.parametrize("case", TIED, ids=str)
def test_ties_come_out_tied(case: Case) -> None:
    fn, _ = compiled(step)
    module = fn(case.make(), INPUT)
    pairs = [("encoder", "decoder")] if case.name == "tied_parameter" else [("one", "other")]
    for one, other in pairs:
        assert getattr(module, one).weight is getattr(module, other).weight


def test_buffers_and_gradients_with_holes() -> None:
    def apply(module: Any, grads: Any) -> Any:
        return tree.map(lambda p, g: p - g, module, grads)

    module = Norm().initialize(0)
    grads = tree.map(lambda leaf: leaf.clone() if leaf.is_floating_point() else None, module)
    fn, counter = compiled(apply)
    for _ in range(3):
        assert_close_trees(fn(module, grads), apply(module, grads))
        module = tree.map(torch.clone, module)
    assert counter.frame_count == 1


def test_inductor_once() -> None:
    module = TiedParameter().initialize(0)
    fn = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(
        tree.leaves(fn(module, INPUT)), tree.leaves(step(module, INPUT)), atol=1e-5, rtol=1e-5
    )


def test_a_compiled_module_method_and_the_tape() -> None:
    module = MLP().initialize(0).reset(0)
    fn = torch.compile(lambda m, x: m(x).sum(), backend="aot_eager", fullgraph=True)
    fn(module, INPUT).backward()
    compiled_grads = module.grad()
    other = MLP().initialize(0).reset(1)
    other(INPUT).sum().backward()
    torch.testing.assert_close(tree.leaves(compiled_grads), tree.leaves(other.grad()))


def test_a_closed_over_module_is_followed() -> None:
    """A module that the function closes over, changed outside: guards must see it."""
    holder = {"module": Dense(bias=False).initialize(0)}
    fn, _ = compiled(lambda x: holder["module"](x))
    torch.testing.assert_close(fn(INPUT), INPUT @ holder["module"].weight.T)
    holder["module"] = Dense(bias=False).initialize(1)
    torch.testing.assert_close(fn(INPUT), INPUT @ holder["module"].weight.T)
