"""Flatten, unflatten, map, update and paths."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.utils import _pytree as torch_pytree

from parallax import Module, Parameter, tree
from tests.corpus import (
    MODULES,
    TIED,
    TWINS,
    Branches,
    Case,
    Dense,
    Norm,
    Sequential,
    TiedModule,
    TiedParameter,
    chain,
)
from tests.tree.strategies import assert_same, modules, trees


def double(leaf: Any) -> Any:
    return leaf + leaf


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_unflatten_is_the_inverse_of_flatten(case: Case) -> None:
    module = case.make()
    leaves, spec = tree.flatten(module)
    again = tree.unflatten(spec, leaves)
    assert type(again) is type(module)
    assert again is not module
    assert_same(again, module)
    assert spec.num_leaves == len(leaves)


@given(trees())
def test_unflatten_is_the_inverse_of_flatten_for_any_tree(subject: Any) -> None:
    leaves, spec = tree.flatten(subject)
    assert_same(tree.unflatten(spec, leaves), subject)


@given(modules())
def test_the_leaves_are_those_that_torch_sees(module: Any) -> None:
    seen = torch_pytree.tree_leaves(module)
    assert [id(leaf) for leaf in seen] == [id(leaf) for leaf in tree.leaves(module)]


@given(modules())
def test_the_leaves_are_those_that_optree_sees_but_for_ties(module: Any) -> None:
    seen: list[int] = []
    for leaf in optree.tree_leaves(module):
        if id(leaf) not in seen:
            seen.append(id(leaf))
    assert seen == [id(leaf) for leaf in tree.leaves(module)]


@pytest.mark.parametrize("case", TWINS, ids=str)
def test_leaves_are_named_as_torch_names_them(case: Case) -> None:
    module = case.make()
    twin: Any = case.twin(module)
    expected = dict(twin.named_parameters()) | dict(twin.named_buffers())
    assert set(tree.named_leaves(module)) == set(expected)


def test_named_leaves_of_a_pytree_start_at_its_root() -> None:
    names = tree.named_leaves({"m": [Dense().initialize(0)], "t": torch.ones(1), "none": None})
    assert list(names) == ["m.0.weight", "m.0.bias", "t"]


def test_dicts_keep_the_order_they_were_written_in() -> None:
    assert list(tree.named_leaves({"z": 1, "a": 2})) == ["z", "a"]
    assert tree.leaves(Branches("z", "a").initialize(0))[0].shape == (4, 4)
    assert next(iter(tree.named_leaves(Branches("z", "a").initialize(0)))) == "branches.z.weight"


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_map_calls_the_function_once_per_leaf_and_keeps_the_structure(case: Case) -> None:
    module = case.make()
    calls: list[int] = []

    def record(leaf: Any) -> Any:
        calls.append(id(leaf))
        return leaf

    assert_same(tree.map(record, module), module)
    assert calls == [id(leaf) for leaf in tree.leaves(module)]


def test_map_leaves_holes_alone_and_keeps_the_first_leaf_where_another_tree_has_a_hole() -> None:
    dense: Any = Dense(bias=False).initialize(0)
    assert tree.map(double, dense).bias is None
    with_bias: Any = Dense().initialize(0)
    hole = tree.map_with_path(lambda path, x: None if path == "bias" else x, with_bias)
    added = tree.map(torch.add, with_bias, hole)
    assert torch.equal(added.bias, with_bias.bias)
    assert torch.equal(added.weight, 2 * with_bias.weight)


def test_map_of_three_trees_is_the_map_of_their_leaves() -> None:
    a, b, c = [Dense().initialize(seed) for seed in range(3)]
    made = tree.map(lambda x, y, z: x + 2 * y + 3 * z, a, b, c)
    assert torch.equal(made.weight, a.weight + 2 * b.weight + 3 * c.weight)


def test_map_with_path_gives_each_leaf_its_path() -> None:
    module = Sequential(Dense(), torch.relu, Dense()).initialize(0)
    paths = tree.map_with_path(lambda path, leaf: path, module)
    assert tree.leaves(paths) == list(tree.named_leaves(module))


@pytest.mark.parametrize("case", TIED, ids=str)
@pytest.mark.parametrize(
    "operate",
    [
        lambda m: tree.map(double, m),
        lambda m: tree.update(torch.add, m, m),
        lambda m: m.replace(),
        lambda m: tree.to(m, dtype=torch.float64),
        lambda m: tree.to(m, "meta"),
        lambda m: tree.stack([m, tree.map(double, m)]),
        lambda m: tree.unstack(tree.stack([m, m]))[1],
        lambda m: tree.ravel(m)[1](tree.ravel(m)[0]),
        lambda m: tree.combine(*tree.partition(m, "**.bias")),
        lambda m: tree.select(m, "**").apply(double),
        lambda m: tree.zeros_like(m),
        lambda m: pickle.loads(pickle.dumps(m)),
        copy.copy,
        copy.deepcopy,
    ],
)
def test_ties_survive(case: Case, operate: Any) -> None:
    module = case.make()
    made = operate(module)
    assert tree.structure(made) == tree.structure(module)
    if case.name == "tied_parameter":
        assert made.encoder.weight is made.decoder.weight
    else:
        assert made.one.weight is made.other.weight is made.several[0].weight
        assert made.one.bias is made.other.bias
        assert made.apart.weight is not made.one.weight


def test_a_tied_leaf_counts_once_as_in_torch() -> None:
    module = TiedParameter().initialize(0)
    twin = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    assert len(tree.leaves(module)) == len(list(twin.parameters())) - 1


# -- wrong structure ------------------------------------------------------------------------------


class Either(Module):
    part: Parameter | Module


ONES: Any = torch.ones(2)
WRONG: list[tuple[Any, Any, str, str, str]] = [
    (Dense(), Norm(), "Dense", "a Dense", "a Norm"),
    (
        Sequential(Dense(), torch.relu),
        Sequential(Dense(), torch.tanh),
        "Sequential.layers.1",
        "the constant",
        "the constant",
    ),
    (
        Sequential(Dense(), Dense()),
        Sequential(Dense(), Norm()),
        "Sequential.layers.1",
        "a Dense",
        "a Norm",
    ),
    (Norm(), Norm(eps=0.1), "Norm.eps", "the constant 1e-05", "the constant 0.1"),
    (Branches("a"), Branches("b"), "Branches.branches", "a FrozenDict of ['a']", "of ['b']"),
    ({"x": [Dense()]}, {"x": [Norm()]}, "x.0", "a Dense", "a Norm"),
    ({"x": [1, {"k": 2}]}, {"x": [1, {"j": 2}]}, "x.1", "a dict of ['k']", "a dict of ['j']"),
    ({"x": (1, 2)}, {"x": [1, 2]}, "x", "a tuple", "a list"),
    ({"x": 1}, {"x": [1]}, "x", "a leaf", "a list"),
    ({"x": 1}, {"x": Dense()}, "x", "a leaf", "a Dense"),
    ({"x": Dense()}, {"x": None}, "x", "a Dense", "a NoneType"),
    (Either(ONES), Either(Dense()), "Either.part", "a leaf", "a Dense"),
    (Either(Dense()), Either(ONES), "Either.part", "a Dense", "a leaf"),
    ([1, 2], [1, 2, 3], "the root", "a list of [0, 1]", "a list of [0, 1, 2]"),
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "operate",
    [
        lambda one, two: tree.map(lambda a, b: a, one, two),
        lambda one, two: tree.update(lambda a, b: a, one, two),
        tree.combine,
        lambda one, two: tree.stack([one, two]),
        tree.add,
        tree.vdot,
    ],
)
def test_wrong_structure_names_the_first_path_and_both_sides(
    operate: Any, wrong: tuple[Any, Any, str, str, str]
) -> None:
    one, two, path, ours, theirs = wrong
    with pytest.raises(ValueError, match="do not fit together") as caught:
        operate(one, two)
    message = str(caught.value)
    assert f"at {path} the first has" in message
    assert ours in message
    assert theirs in message.split("the other has")[1]


def test_unflatten_with_another_number_of_leaves_says_both() -> None:
    spec = tree.structure(Dense())
    with pytest.raises(ValueError, match="the structure has 2 leaves, got 3"):
        tree.unflatten(spec, [1, 2, 3])


def test_two_values_for_one_tied_leaf_name_both_paths() -> None:
    tied: Any = TiedModule().initialize(0)
    loose: Any = optree.tree_map(lambda leaf: leaf.clone(), tied)
    with pytest.raises(ValueError, match=r"one\.weight and other\.weight.*tree\.tie") as caught:
        tree.map(torch.add, tied, loose)
    assert "different value in each" in str(caught.value)


def test_modes_and_frozen_marks_are_not_compared_and_the_first_tree_s_stay() -> None:
    plain = Sequential(Dense(), Dense()).initialize(0)
    marked = tree.select(plain.eval(), "layers.0").freeze()
    for first, other in ((plain, marked), (marked, plain)):
        for made in (
            tree.map(torch.add, first, other),
            tree.update(torch.add, first, other),
            tree.combine(tree.partition(first, "**.bias")[0], other),
            tree.add(first, other),
        ):
            assert made.mode == first.mode
            assert tree.structure(made) == tree.structure(first)


# -- graphs and depth -----------------------------------------------------------------------------


def test_update_records_a_graph_only_when_a_later_tree_carries_one() -> None:
    model = tree.map(lambda x: x.requires_grad_(), Dense().initialize(0))
    grads = Dense().initialize(1)
    assert not tree.update(torch.add, model, grads).weight.requires_grad
    assert tree.map(torch.add, model, grads).weight.requires_grad
    carrying = tree.map(lambda x: x.requires_grad_() * 1, grads)
    assert tree.update(torch.add, model, carrying).weight.grad_fn is not None


def test_trees_two_hundred_deep_work() -> None:
    deep = chain(200).initialize(0)
    assert len(tree.leaves(tree.map(double, deep))) == 200
    assert tree.select(deep, "**.weight").count() == 200
    assert list(tree.named_leaves(deep))[-1].count(".") == 199
    assert tree.structure(tree.unstack(tree.stack([deep, deep]))[0]) == tree.structure(deep)


def test_nothing_given_is_written_to() -> None:
    one, two = Dense().initialize(0), Dense().initialize(1)
    versions = [leaf._version for leaf in (*tree.leaves(one), *tree.leaves(two))]
    state = torch.random.get_rng_state()
    tree.add(one, two)
    tree.scale(one, 2.0)
    tree.lerp(one, two, 0.5)
    tree.select(one, "**").set(tree.leaves(two))
    tree.ravel(one)[1](tree.ravel(two)[0])
    tree.tie(one, two)
    assert versions == [leaf._version for leaf in (*tree.leaves(one), *tree.leaves(two))]
    assert torch.equal(state, torch.random.get_rng_state())


class Outer(Module):
    """A module whose child is described from raw optree's output."""

    inner: TiedParameter


def test_a_module_that_optree_rebuilt_is_a_tree_like_any_other() -> None:
    module: Any = Outer(TiedParameter()).initialize(0)
    rebuilt = optree.tree_map(double, module)
    assert len(tree.leaves(rebuilt)) == 4
    tied = optree.tree_map(lambda leaf: leaf, module)
    assert tree.structure(tied) == tree.structure(module)


def test_a_structure_has_the_path_of_each_leaf_that_flatten_gives() -> None:
    """Read off the containers by hand: a hole has a path, too, and a tied leaf its first."""
    lone, dense, tied = torch.zeros(2), Dense(bias=False), TiedParameter()
    leaves, spec = tree.flatten({"a": [lone, dense], "b": (3.0, tied)})
    expected = {
        "a.0": lone,
        "a.1.weight": dense.weight,
        "a.1.bias": None,
        "b.0": 3.0,
        "b.1.encoder.weight": tied.encoder.weight,
        "b.1.encoder.bias": tied.encoder.bias,
        "b.1.decoder.bias": tied.decoder.bias,
    }
    assert spec.paths == list(expected)
    assert all(one is two for one, two in zip(leaves, expected.values(), strict=True))
    assert tree.structure(lone).paths == [""]
    assert tree.structure(dense).paths == ["weight", "bias"]
