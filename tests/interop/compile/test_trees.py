"""Traversals within the graph, of modules and of registered classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import registry, tree
from tests.comparing import assert_close_trees
from tests.compiling import compiled
from tests.corpus import FLOAT, MLP, Case, Foreign, Gated, Gates, Holder, Norm, TiedParameter
from tests.interop.compile.steps import INPUT, loss_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


# -- traversals inside -----------------------------------------------------------------------------


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
        assert_close_trees(got[1], expected[1])
        assert list(got[2]) == list(expected[2])
        torch.testing.assert_close(got[2], expected[2])
        assert_close_trees(got[3], expected[3])
        module = tree.map(torch.clone, module)
    assert counter.frame_count <= 1  # a module without leaves needs no graph


@pytest.mark.parametrize(
    "traverse",
    [
        pytest.param(lambda f, m: optree.tree_map(f, m, none_is_leaf=False), id="optree"),
        pytest.param(torch_pytree.tree_map, id="torch"),
    ],
)
def test_raw_tree_map_inside(traverse: Callable[..., Any]) -> None:
    # Dynamo follows optree by recursion, three frames a level: a long chain is too deep. All are in
    # one graph, since for each graph it looks through every class that optree knows: here, many.
    cases = [case for case in FLOAT if case.name != "chain"]
    modules = [case.make() for case in cases]
    fn, counter = compiled(lambda ms: [traverse(lambda leaf: 2 * leaf, m) for m in ms])
    for _ in range(3):
        for case, module, got in zip(cases, modules, fn(modules), strict=True):
            expected = tree.named_leaves(traverse(lambda leaf: 2 * leaf, module))
            assert type(got) is type(module), case
            torch.testing.assert_close(tree.named_leaves(got), expected)
        modules = [tree.map(torch.clone, module) for module in modules]
    assert counter.frame_count == 1


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
    assert_close_trees(
        fn(module.train(), module.eval()), tree.map(torch.add, module.train(), module.eval())
    )


# -- users' classes --------------------------------------------------------------------------------


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
        assert_close_trees(got.value, expected.value)
    assert counter.frame_count == 1


def test_named_tuples_and_registered_classes_below_modules() -> None:
    fn, counter = compiled(lambda m: tree.map(lambda leaf: leaf + 1, m))
    for seed in range(2):
        holder = Holder().initialize(seed)
        got = fn(holder)
        assert type(got.pair) is Foreign and got.pair.tag == "tag"
        torch.testing.assert_close(got.pair.left.weight, holder.pair.left.weight + 1)
    assert counter.frame_count == 1
    gated = Gated().initialize(0)
    gates = compiled(lambda m: tree.map(lambda leaf: leaf + 1, m))[0](gated).gates
    assert type(gates) is Gates and gates.power == 2
    torch.testing.assert_close(gates.inner.weight, gated.gates.inner.weight + 1)
