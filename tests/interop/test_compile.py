"""``torch.compile(fullgraph=True)`` with modules in and modules out.

Every test counts the frames that dynamo compiles: a graph that is compiled again for each new
instance is as wrong as one that computes something else.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.func import functional_call
from torch.func import jvp as _jvp
from torch.func import vjp as _vjp
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, registry, tree
from tests.corpus import (
    FLOAT,
    MLP,
    SIZE,
    TIED,
    TWINS,
    Case,
    Dense,
    Foreign,
    Gates,
    Holder,
    Norm,
    TiedModule,
    TiedParameter,
    example_input,
)

INPUT = example_input()
jvp: Any = _jvp  # annotated as if they always returned an auxiliary value
vjp: Any = _vjp
CALLABLE = [case for case in FLOAT if case.name not in ("chain", "empty")]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(fn: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    counter = CompileCounter()
    return torch.compile(fn, backend=counter, fullgraph=True), counter


def loss_of(module: Any, x: Tensor) -> Tensor:
    return torch.cos(module(x)).sum()


def step(module: Any, x: Tensor) -> Any:
    grads = torch.func.grad(loss_of)(module, x)
    return tree.map(lambda p, g: p - 0.1 * g, module, grads)


def raw_step(module: Any, x: Tensor) -> Any:
    grads = torch.func.grad(loss_of)(module, x)
    return torch_pytree.tree_map(lambda p, g: p - 0.1 * g, module, grads)


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    assert tree.structure(one) == tree.structure(other)
    torch.testing.assert_close(tree.named_leaves(one), tree.named_leaves(other))


# -- module in, module out --------------------------------------------------------------------


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
        assert_equal(module, expected)
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


def fresh(module: Any, how: str, k: int) -> Any:
    """Another instance of the structure of ``module``, with other tensors."""
    if how == "initialize":
        return type(module)().initialize(k)
    if how == "tree.map":
        return tree.map(lambda leaf: leaf + k, module)
    if how == "torch":
        return torch_pytree.tree_map(lambda leaf: leaf + k, module)
    if how == "optree":  # unties: optree sees a tied leaf in each of its places
        return optree.tree_map(lambda leaf: leaf.clone(), module)
    if how == "pickle":
        return pickle.loads(pickle.dumps(module))
    if how == "deepcopy":
        return copy.deepcopy(module)
    if how == "replace":
        return module.replace()
    leaves, spec = tree.flatten(module)
    return tree.unflatten(spec, [leaf.clone() for leaf in leaves])


WAYS = ["initialize", "tree.map", "torch", "pickle", "deepcopy", "replace", "unflatten"]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("cls", [MLP, TiedParameter, TiedModule, Holder])
def test_fresh_instances_do_not_recompile(cls: type[Any], how: str) -> None:
    module = cls().initialize(0)
    fn, counter = compiled(step)
    for k in range(4):
        instance = fresh(module, how, k)
        assert_equal(fn(instance, INPUT), step(instance, INPUT))
    assert counter.frame_count == 1


def test_fresh_instances_from_raw_optree_do_not_recompile() -> None:
    module = MLP().initialize(0)
    fn, counter = compiled(step)
    for k in range(4):
        instance = fresh(module, "optree", k)
        assert_equal(fn(instance, INPUT), step(fresh(module, "optree", k), INPUT))
    assert counter.frame_count == 1


def test_instances_from_everywhere_share_one_graph() -> None:
    module = TiedModule().initialize(0)
    fn, counter = compiled(step)
    for k, how in enumerate(WAYS):
        assert_equal(fn(fresh(module, how, k), INPUT), step(fresh(module, how, k), INPUT))
    fn(fn(module, INPUT), INPUT)
    assert counter.frame_count == 1


def test_a_mode_set_outside_does_not_recompile_within_it() -> None:
    class Halver(Module):
        inner: Dense

        def __init__(self) -> None:
            super().__init__()
            self.inner = Dense()

        def forward(self, x: Tensor) -> Any:
            out = self.inner(x)
            return out if self.mode == "train" else out / 2

    module = Halver().initialize(0)
    fn, counter = compiled(step)
    for k in range(3):
        train, held = module.train(), module.eval()
        assert_equal(fn(train, INPUT), step(train, INPUT))
        assert_equal(fn(held, INPUT), step(held, INPUT))
        module = tree.map(lambda leaf, k=k: leaf + k, module)
    assert counter.frame_count == 2
    out = fn(module.eval(), INPUT)
    assert out.mode == out.inner.mode == "eval"


def test_a_changed_constant_recompiles_once() -> None:
    fn, counter = compiled(lambda m, x: m(x))
    norm = Norm().initialize(0)
    for eps in (1e-5, 1e-3, 1e-5, 1e-3):
        changed = norm.replace(eps=eps)
        torch.testing.assert_close(fn(changed, INPUT), changed(INPUT))
    assert counter.frame_count == 2


def test_a_changed_function_recompiles_once() -> None:
    fn, counter = compiled(lambda m, x: m(x))
    for activation in (torch.tanh, torch.relu, torch.tanh, torch.relu):
        module = MLP(activation).initialize(0)
        torch.testing.assert_close(fn(module, INPUT), module(INPUT))
    assert counter.frame_count == 2


def test_a_missing_bias_recompiles_once() -> None:
    fn, counter = compiled(step)
    for bias in (True, False, True, False):
        module = MLP(bias=bias).initialize(0)
        assert_equal(fn(module, INPUT), step(module, INPUT))
    assert counter.frame_count == 2


def test_a_tie_recompiles_once_and_is_kept() -> None:
    fn, counter = compiled(step)
    tied = TiedParameter().initialize(0)
    untied = tied.replace(decoder=tied.decoder.replace(weight=tied.encoder.weight.clone()))
    for module in (tied, untied, tied, untied):
        assert_equal(fn(module, INPUT), step(module, INPUT))
    assert counter.frame_count == 2


def test_buffers_and_gradients_with_holes() -> None:
    def apply(module: Any, grads: Any) -> Any:
        return tree.map(lambda p, g: p - g, module, grads)

    module = Norm().initialize(0)
    grads = tree.map(lambda leaf: leaf.clone() if leaf.is_floating_point() else None, module)
    fn, counter = compiled(apply)
    for _ in range(3):
        assert_equal(fn(module, grads), apply(module, grads))
        module = tree.map(torch.clone, module)
    assert counter.frame_count == 1


# -- transforms inside --------------------------------------------------------------------------


def test_second_order_inside() -> None:
    def penalty(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(loss_of)(module, x)
        return sum([g.pow(2).sum() for g in tree.leaves(grads)])

    fn, counter = compiled(torch.func.grad(penalty))
    for seed in range(2):
        module = TiedParameter().initialize(seed)
        assert_equal(fn(module, INPUT), torch.func.grad(penalty)(module, INPUT))
    assert counter.frame_count == 1


def test_vmap_of_an_ensemble_inside() -> None:
    def run(stacked: Any, x: Tensor) -> Any:
        return torch.vmap(torch.func.grad(loss_of), in_dims=(0, None))(stacked, x)

    members = [TiedParameter().initialize(seed) for seed in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)
    fn, counter = compiled(run)
    got = fn(stacked, INPUT)
    for k, member in enumerate(members):
        one = tree.map(lambda leaf, k=k: leaf[k], got)
        assert_equal(one, torch.func.grad(loss_of)(member, INPUT))
    assert counter.frame_count == 1


def test_jvp_and_vjp_inside() -> None:
    def run(module: Any, x: Tensor) -> Any:
        value, pull = vjp(lambda m: m(x), module)
        (grads,) = pull(torch.ones_like(value))
        return grads, jvp(lambda m: m(x), (module,), (grads,))

    module = TiedModule().initialize(0)
    fn, _ = compiled(run)
    grads, pushed = fn(module, INPUT)
    expected, expected_pushed = run(module, INPUT)
    assert_equal(grads, expected)
    torch.testing.assert_close(pushed, expected_pushed)


# -- modules made inside ------------------------------------------------------------------------


class Point(Module):
    """A generated ``__init__``, a default and a converter."""

    at: Parameter
    scale: float = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.at * x


class Pair(Module):
    left: Module
    right: Module
    both: tuple[Point, Point]
    named: dict[str, Point]

    def __init__(self, left: Module, right: Module) -> None:
        super().__init__()
        self.left, self.right = left, right
        self.both = (Point(torch.ones(2)), Point(torch.ones(2) * 2))
        self.named = {"z": Point(torch.zeros(2)), "a": Point(torch.ones(2))}


def test_a_module_made_inside_comes_out_whole() -> None:
    fn, counter = compiled(lambda x: Point(x + 1))
    for k in range(3):
        point = fn(torch.full((2,), float(k)))
        assert_equal(point, Point(torch.full((2,), k + 1.0)))
        assert point.scale == 2.0
        assert_equal(tree.map(lambda leaf: leaf * 2, point), Point(torch.full((2,), 2 * k + 2.0)))
        with pytest.raises(AttributeError):
            point.at = None
    assert counter.frame_count == 1


def test_a_tree_made_inside_works_outside_and_fed_back() -> None:
    def make(x: Tensor) -> Any:
        return Pair(Point(x), Point(2 * x))

    def double(pair: Any) -> Any:
        return tree.map(lambda leaf: 2 * leaf, pair)

    fn, counter = compiled(make)
    pair = fn(torch.ones(2))
    assert_equal(pair, make(torch.ones(2)))
    assert type(pair.named).__name__ == "FrozenDict" and list(pair.named) == ["z", "a"]
    assert_equal(pickle.loads(pickle.dumps(fn(torch.ones(2)))), make(torch.ones(2)))
    assert counter.frame_count == 1
    again, counter = compiled(double)
    for _ in range(3):
        pair = again(pair)
    assert_equal(pair, tree.map(lambda leaf: 8 * leaf, make(torch.ones(2))))


def test_a_step_that_makes_its_module_anew() -> None:
    def remake(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(lambda m: (m(x) ** 2).sum())(module)
        return Point(module.at - 0.1 * grads.at, module.scale)

    fn, counter = compiled(remake)
    module = expected = Point(torch.ones(SIZE))
    for _ in range(5):
        module, expected = fn(module, INPUT), remake(expected, INPUT)
        assert_equal(module, expected)
    assert counter.frame_count == 1


def test_ties_of_modules_made_inside_are_exact() -> None:
    class Twice(Module):
        one: Point
        two: Point

        def forward(self, x: Tensor) -> Any:
            return self.two(self.one(x))

    def grads(x: Tensor) -> Any:
        point = Point(x + 1)
        return torch.func.grad(lambda m: m(x).sum())(Twice(point, point))

    fn, counter = compiled(grads)
    for k in range(3):
        x = torch.full((2,), float(k))
        got = fn(x)
        assert_equal(got, grads(x))
        assert got.one.at is got.two.at
        torch.testing.assert_close(got.one.at, 8 * (x + 1) * x)  # d/dp of 4 p^2 x
    assert counter.frame_count == 1


def test_modules_made_inside_around_tied_inputs() -> None:
    class Wrap(Module):
        inner: TiedParameter

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)

    fn, counter = compiled(lambda m, x: torch.func.grad(loss_of)(Wrap(m), x).inner)
    for seed in range(2):
        module = TiedParameter().initialize(seed)
        assert_equal(fn(module, INPUT), torch.func.grad(loss_of)(module, INPUT))
    assert counter.frame_count == 1


def test_replace_inside() -> None:
    def run(module: Any, x: Tensor) -> Any:
        return module.replace(first=module.first.replace(weight=module.first.weight + x.sum()))

    fn, counter = compiled(run)
    module = MLP().initialize(0).eval()
    out = module
    for _ in range(3):
        out = fn(module, INPUT)
        assert_equal(out, run(module, INPUT))
        module = tree.map(torch.clone, module)
    assert counter.frame_count == 1
    assert out.mode == out.first.mode == "eval"


# -- traversals inside --------------------------------------------------------------------------


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_the_tree_inside_equals_the_tree_outside(case: Case) -> None:
    def run(module: Any) -> Any:
        leaves, spec = tree.flatten(module)
        named = tree.named_leaves(module)
        mapped = tree.map_with_path(lambda path, leaf: leaf * len(path), module)
        return (
            leaves,
            tree.unflatten(spec, [leaf if leaf is None else leaf + 1 for leaf in leaves]),
            named,
            mapped,
        )

    fn, counter = compiled(run)
    module = case.make()
    for _ in range(2):
        got, expected = fn(module), run(module)
        assert len(got[0]) == len(expected[0])
        torch.testing.assert_close([x for x in got[0] if x is not None], tree.leaves(module))
        assert_equal(got[1], expected[1])
        assert list(got[2]) == list(expected[2])
        torch.testing.assert_close(got[2], expected[2])
        assert_equal(got[3], expected[3])
        module = tree.map(torch.clone, module)
    assert counter.frame_count <= 1  # a module without leaves needs no graph


@pytest.mark.parametrize(
    "traverse",
    [
        pytest.param(lambda f, m: optree.tree_map(f, m, none_is_leaf=False), id="optree"),
        pytest.param(torch_pytree.tree_map, id="torch"),
    ],
)
# Dynamo follows optree by recursion, three frames a level: a chain of 40 modules is too deep.
@pytest.mark.parametrize("case", [case for case in FLOAT if case.name != "chain"], ids=str)
def test_raw_tree_map_inside(case: Case, traverse: Callable[..., Any]) -> None:
    fn, counter = compiled(lambda m: traverse(lambda leaf: 2 * leaf, m))
    module = case.make()
    for _ in range(3):
        got, expected = fn(module), traverse(lambda leaf: 2 * leaf, module)
        torch.testing.assert_close(tree.named_leaves(got), tree.named_leaves(expected))
        module = tree.map(torch.clone, module)
    assert counter.frame_count <= 1


def test_trees_that_do_not_fit_are_refused_inside() -> None:
    def add(one: Any, other: Any) -> Any:
        return tree.map(torch.add, one, other)

    fn, _ = compiled(add)
    one = Norm().initialize(0)
    with pytest.raises(Exception, match="eps"):
        fn(one, one.replace(eps=1.0))
    tied = TiedParameter().initialize(0)
    untied = tied.replace(decoder=tied.decoder.replace(weight=tied.encoder.weight.clone()))
    with pytest.raises(Exception, match=r"encoder\.weight and decoder\.weight"):
        fn(tied, untied)


def test_trees_of_other_modes_fit_inside() -> None:
    fn, _ = compiled(lambda a, b: tree.map(torch.add, a, b))
    module = MLP().initialize(0)
    assert_equal(
        fn(module.train(), module.eval()), tree.map(torch.add, module.train(), module.eval())
    )


# -- users' classes -----------------------------------------------------------------------------


class Box:
    """Registered below; knows nothing of modules."""

    def __init__(self, value: Any, label: str) -> None:
        self.value, self.label = value, label


registry.register(
    Box, lambda box: ((box.value,), box.label), lambda label, value: Box(value[0], label)
)


def test_a_registered_class_around_modules() -> None:
    def run(box: Any, x: Tensor) -> Any:
        grads = torch.func.grad(lambda b: loss_of(b.value, x))(box)
        return torch_pytree.tree_map(lambda p, g: p - g, box, grads)

    fn, counter = compiled(run)
    for seed in range(3):
        box = Box(TiedParameter().initialize(seed), "label")
        got, expected = fn(box, INPUT), run(box, INPUT)
        assert got.label == "label"
        assert_equal(got.value, expected.value)
    assert counter.frame_count == 1


def test_named_tuples_and_registered_classes_below_modules() -> None:
    fn, counter = compiled(lambda m: tree.map(lambda leaf: leaf + 1, m))
    for seed in range(2):
        holder = Holder().initialize(seed)
        got = fn(holder)
        assert type(got.pair) is Foreign and got.pair.tag == "tag"
        torch.testing.assert_close(got.pair.left.weight, holder.pair.left.weight + 1)
    assert counter.frame_count == 1
    assert Gates._fields == ("inner", "gain", "power")


# -- backends -----------------------------------------------------------------------------------


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
