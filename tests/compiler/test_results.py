"""``parallax.compile`` computes what the function computes, whatever trees go in and out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

import parallax
from parallax import Module, Parameter, tree
from tests.comparing import assert_close_trees
from tests.compiler.programs import net, start, step
from tests.compiling import graphs, make_compiled
from tests.corpus import MODULES, SIZE, Case, Scale, TiedModule, example_input

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_any_module_goes_in_and_out(case: Case) -> None:
    module = case.make()

    def fn(module: Any) -> Any:
        return tree.map(torch.clone, module), module

    compiled = make_compiled(fn, backend="eager")
    plus, same = compiled(module)
    assert_close_trees(plus, module)
    assert tree.structure(plus) == tree.structure(module)
    assert all(a is b for a, b in zip(tree.leaves(same), tree.leaves(module), strict=True))
    compiled(plus)
    assert graphs() <= 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_whole_training_step_is_one_graph_and_equals_torch_optim(backend: str) -> None:
    torch.manual_seed(0)
    model = net()
    state, x, y = start(model), torch.randn(5, SIZE), torch.randn(5, 2)
    params = [leaf.clone().requires_grad_() for leaf in tree.leaves(model)]
    optimizer = torch.optim.Adam(params, lr=0.01)
    compiled = make_compiled(step, backend=backend)
    for _ in range(4):
        model, state, loss = compiled(model, state, x, y)
        w1, b1, w2, b2 = params
        expected = F.mse_loss(F.linear(torch.relu(F.linear(x, w1, b1)), w2, b2), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(loss, expected.detach())
    for ours, theirs in zip(tree.leaves(model), params, strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    assert graphs() == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_flow_through_a_call(backend: str) -> None:
    model = tree.map(lambda leaf: leaf.requires_grad_(), net())
    x = torch.randn(3, SIZE, requires_grad=True)
    compiled = make_compiled(lambda model, x: (model(x), {"sum": x.sum()}), backend=backend)
    out, extra = compiled(model, x)
    got = torch.autograd.grad(out.sum() + extra["sum"], [*tree.leaves(model), x])
    expected = torch.autograd.grad(model(x).sum() + x.sum(), [*tree.leaves(model), x])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_ties_stay_and_their_gradients_sum() -> None:
    module = TiedModule().initialize(0)
    x = example_input()

    def fn(module: Any) -> Any:
        grads = torch.func.grad(lambda module: module(x).square().sum())(module)
        return tree.map(lambda p, g: p - g, module, grads)

    moved = make_compiled(fn, backend="aot_eager")(module)
    assert_close_trees(moved, fn(module))
    assert len(tree.leaves(moved)) == len(tree.leaves(module))


def test_one_tensor_in_several_arguments_is_one_leaf() -> None:
    def fn(a: Tensor, b: Tensor) -> Any:
        return torch.func.grad(lambda a: (a * b).sum())(a)

    compiled = make_compiled(fn, backend="aot_eager")
    x, y = torch.randn(3), torch.randn(3)
    for _ in range(2):
        assert torch.equal(compiled(x, y), y)
        assert torch.equal(compiled(x, x), x)


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    "make",
    [
        lambda m, x: [m, (x, None)],
        lambda m, x: {"b": m, "a": {"x": x}},
        lambda m, x: Pair(m, [x]),
        lambda m, x: ((), {}, [], m, "text", 3, 2.5, True, x),
    ],
)
def test_containers_go_in_and_out(make: Callable[[Any, Any], Any]) -> None:
    given = make(Scale(torch.ones(2)), torch.ones(2))
    compiled = make_compiled(lambda value: value, backend="eager")
    for _ in range(2):
        out = compiled(given)
        assert type(out) is type(given)
        assert_close_trees(out, given)


def test_the_order_of_a_dict_is_kept() -> None:
    compiled = make_compiled(lambda d: (d, sum(w * x for w, x in enumerate(d.values()))),
                                backend="eager")  # fmt: skip
    one, two = torch.tensor(1.0), torch.tensor(10.0)
    for given in ({"a": one, "b": two}, {"b": one, "a": two}, {"a": two, "b": one}):
        out, weighted = compiled(given)
        assert list(out.items()) == list(given.items())
        assert weighted == list(given.values())[1]


def test_keywords_and_defaults_bind_as_ever() -> None:
    def fn(
        x: Tensor, /, scale: float = 2.0, *rest: Tensor, shift: Tensor, **more: Tensor
    ) -> Tensor:
        return x * scale + sum(rest) + shift + sum(more.values())

    compiled = make_compiled(fn, backend="eager")
    x = torch.ones(2)
    calls: list[Callable[[Any], Any]] = [
        lambda f: f(x, shift=x),
        lambda f: f(x, 3.0, x, shift=x),
        lambda f: f(x, scale=3.0, shift=x, other=x, another=2 * x),
    ]
    for call in calls:
        assert torch.equal(call(compiled), call(fn))
    with pytest.raises(TypeError, match="shift"):
        make_compiled(fn, backend="eager", fullgraph=False)(x)


def test_it_decorates_functions_methods_and_modules() -> None:
    class Double(Module):
        by: Parameter

        @partial(make_compiled, backend="eager")
        def forward(self, x: Tensor) -> Any:
            return self.by * x

        def twice(self, x: Tensor) -> Any:
            return 2 * self(x)

    module, x = Double(torch.tensor([3.0])), torch.ones(1)
    assert module(x) == 3
    assert module(x) == 3
    assert make_compiled(module, backend="eager")(x) == 3
    assert make_compiled(module.twice, backend="eager")(x) == 6

    @parallax.compile
    def named(x: Tensor) -> Tensor:
        """Says something."""
        return x

    assert (named.__name__, named.__doc__) == ("named", "Says something.")


def test_modules_made_inside_come_out_whole() -> None:
    def fn(model: Any, x: Tensor) -> Any:
        return Scale(model.first.weight @ x), model.replace(first=model.first)

    model, x = net(), torch.randn(SIZE)
    compiled = make_compiled(fn, backend="eager")
    for _ in range(2):
        scale, replaced = compiled(model, x)
        torch.testing.assert_close(scale.by, model.first.weight @ x)
        assert_close_trees(replaced, model)
        assert_close_trees(
            tree.map(lambda leaf: leaf + 1, replaced), tree.map(lambda leaf: leaf + 1, model)
        )
    assert graphs() == 1


def test_transforms_inside() -> None:
    def fn(models: Any, xs: Tensor) -> Any:
        return torch.vmap(lambda model, x: model(x))(models, xs)

    models, xs = tree.stack([net(0), net(1)]), torch.randn(2, SIZE)
    torch.testing.assert_close(make_compiled(fn, backend="aot_eager")(models, xs), fn(models, xs))


def test_a_list_or_dict_in_two_places_is_one() -> None:
    def fn(x: Tensor, given: list[Any], table: dict[str, Any]) -> Any:
        made: list[Any] = [2 * x]
        given.append(made)
        inner = {"made": made, "deep": (made, table)}
        return given, inner, (made, [inner]), {"table": table, "given": table["given"]}

    compiled, x = make_compiled(fn, backend="eager"), torch.ones(2)
    for run in (fn, compiled, compiled):
        given: list[Any] = [1.0]
        table: dict[str, Any] = {"given": [3]}
        first, inner, (made, [again]), last = run(x, given, table)
        assert first is given and len(given) == 2
        assert given[1] is made is inner["made"] is inner["deep"][0]
        assert again is inner and inner["deep"][1] is table is last["table"]
        assert last["given"] is table["given"]
        assert torch.equal(made[0], 2 * x)


def test_equal_lists_and_empty_ones_stay_apart() -> None:
    def fn(x: Tensor) -> Any:
        return [], [], {"a": []}, [x], [x]

    one, other, table, first, second = make_compiled(fn, backend="eager")(torch.ones(2))
    assert len({id(one), id(other), id(table["a"]), id(first), id(second)}) == 5
