"""Generated code: it builds and collects trees of any shape, and is shared by equal shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import init

from parallax import Module, Parameter, tree
from parallax.core import flatten
from parallax.core.module_structure import modules_in, spec_of
from tests.corpus import MLP, MODULES, Case, Dense, Many


class Leaf(Module):
    weight: Parameter


class Node(Module):
    """Any shape at all, by containers of itself."""

    weight: Parameter | None
    many: tuple[Module, ...]
    named: dict[str, Module]
    loose: list[Parameter]
    last: Module | None
    tag: int = 0


def leaf(k: int) -> Leaf:
    return Leaf(torch.tensor(float(k)))


def node(*, weight: Any, many: Any, named: Any, loose: Any, last: Any, tag: int) -> Node:
    values: list[Any] = [torch.tensor(float(x)) for x in loose]
    own: Any = None if weight is None else torch.tensor(float(weight))
    return Node(own, tuple(many), named, values, last, tag)


trees: Any = st.recursive(
    st.builds(leaf, st.integers(0, 9)),
    lambda inner: st.builds(
        node,
        weight=st.none() | st.integers(0, 9),
        many=st.lists(inner, max_size=12),
        named=st.dictionaries(st.sampled_from(["z", "a", "m"]), inner),
        loose=st.lists(st.integers(0, 9), max_size=12),
        last=st.none() | inner,
        tag=st.integers(0, 2),
    ),
    max_leaves=30,
)


def walk(value: Any) -> list[Any]:
    """Every leaf in field order, by attributes."""
    if isinstance(value, Leaf):
        return [value.weight]
    if isinstance(value, Node):
        parts = [*value.many, *value.named.values(), *value.loose, value.last]
        return [value.weight, *(x for part in parts for x in walk(part))]
    return [value]


@given(trees)
def test_any_tree_is_built_and_collected(module: Any) -> None:
    spec = spec_of(module)
    places = spec.shape.collect(module)
    assert [id(x) for x in places] == [id(x) for x in walk(module)]
    fresh = [None if x is None else x + 1 for x in places]
    built = spec.shape.build(fresh, 0, spec.plan, 0)
    assert [id(x) for x in walk(built)] == [id(x) for x in fresh]
    assert spec.shape.n_leaves == len(places)


def modules_by_attributes(value: Any) -> list[Any]:
    """The modules of a tree, parents first."""
    if isinstance(value, Leaf):
        return [value]
    if isinstance(value, Node):
        parts = [*value.many, *value.named.values(), value.last]
        return [value, *(x for part in parts for x in modules_by_attributes(part))]
    return []


@given(trees)
def test_the_modules_of_any_tree_come_parents_first(module: Any) -> None:
    found = modules_in(module)
    assert [id(x) for x in found] == [id(x) for x in modules_by_attributes(module)]


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_the_modules_below_a_registered_class_are_found(case: Case) -> None:
    module = case.make()
    assert {id(x) for x in modules_in(module)} == {id(x) for x in module.modules()}


@given(trees)
def test_reads_of_a_built_tree_are_those_of_a_constructed_one(module: Any) -> None:
    built = tree.map(lambda x: x, module)
    assert list(vars(built)) == [name for name in vars(built) if name in vars(module)]
    for name in type(module).__layout__.fields:
        assert type(getattr(built, name)) is type(getattr(module, name))


def test_equal_shapes_are_one_object() -> None:
    mlp = spec_of(MLP())
    assert mlp.children[0].shape is mlp.children[1].shape is spec_of(Dense()).shape
    assert spec_of(MLP(torch.relu)).shape is mlp.shape  # constants are no part of a shape


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 12, 13, 30])
def test_runs_of_equal_children_of_any_length(n: int) -> None:
    module: Any = Many(n).initialize(0)
    mapped = tree.map(lambda x: 2 * x, module)
    for k in range(n):
        torch.testing.assert_close(mapped.layers[k].bias, 2 * module.layers[k].bias)
        torch.testing.assert_close(mapped.shifts[k], 2 * module.shifts[k])


@pytest.mark.parametrize("n", [1, 11, 12, 13, 25])
def test_children_of_any_number_of_nodes(n: int) -> None:
    """Small children are written in place, larger ones called."""

    class Holder(Module):
        before: Parameter
        inner: Module
        after: Parameter

    inner = Many(n).initialize(0)
    module = Holder(torch.zeros(1), inner, torch.ones(1))
    mapped: Any = tree.map(lambda x: x + 1, module)
    assert mapped.before.item() == 1 and mapped.after.item() == 2
    torch.testing.assert_close(mapped.inner.shifts[-1], inner.shifts[-1] + 1)


def test_an_rng_reaches_every_module() -> None:
    module = MLP().initialize(0).train(3)
    mapped = tree.map(torch.clone, module)
    assert mapped.first._rng is mapped._rng is module._rng


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_the_code_of_every_shape_runs_after_the_table_was_cleared(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flatten, "_shapes", {})
    module = case.make()
    mapped = tree.map(torch.clone, module)
    torch.testing.assert_close(tree.named_leaves(mapped), tree.named_leaves(module), equal_nan=True)


def test_names_in_user_code_do_not_meet_those_of_generated_code() -> None:
    class L(Module):
        i: Parameter
        N: Parameter
        j: Parameter
        R: Parameter
        new: Parameter
        set_dict: Parameter
        tree: Parameter

    class generated(Module):
        d1: Parameter
        o2: L
        C3: L

    inner = L(*(Parameter((), init.ones_) for _ in range(7)))
    module = generated(Parameter((), init.ones_), inner, inner).initialize(0)
    mapped = tree.map(lambda x: x + 1, module.train(0))
    assert all(x.item() == 2 for x in tree.leaves(mapped))
    assert mapped.o2.set_dict.item() == 2


class Plain(Module):
    number: int
    ratio: float
    flag: bool
    name: str
    absent: None
    several: tuple[tuple[int, ...], str]
    unbounded: float


def test_plain_constants_are_literals_of_traced_code_and_others_its_globals() -> None:
    """Dynamo would take an integer among the globals for a size that may change."""
    module = Plain(3, 0.5, True, "a", None, ((1, 2), "b"), float("inf"))
    build = flatten.write_traced(spec_of(module), "build")
    held = [value for name, value in build.__globals__.items() if not name.startswith("__")]
    assert [value for value in held if type(value) in (int, float, bool, str, tuple)] == [
        module.unbounded
    ]
    made = build(())
    assert tree.structure(made) == tree.structure(module) and made.several == ((1, 2), "b")
