"""partition and combine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallax import Buffer, tree
from tests.corpus import MLP, MODULES, Case, Dense, Norm, Sequential, TiedParameter
from tests.tree.strategies import assert_same, trees

CONDITIONS = st.lists(
    st.sampled_from(
        [
            *("parameter", "buffer", "trainable", "frozen", Dense, Buffer, torch.Tensor),
            lambda path, leaf: leaf.ndim == 2,
            lambda path, leaf: "named" in path,
        ]
    ),
    max_size=3,
)


@given(trees(), CONDITIONS)
def test_combine_is_the_inverse_of_partition(subject: Any, conditions: list[Any]) -> None:
    parts = tree.partition(subject, *conditions)
    assert len(parts) == len(conditions) + 1
    assert_same(tree.combine(*parts), subject)
    assert_same(tree.combine(*reversed(parts)), subject)


@given(trees(), CONDITIONS)
def test_every_leaf_is_in_exactly_one_part(subject: Any, conditions: list[Any]) -> None:
    parts = tree.partition(subject, *conditions)
    columns = zip(*[tree.flatten(part)[0] for part in parts], strict=True)
    for leaf, column in zip(tree.flatten(subject)[0], columns, strict=True):
        present = [value for value in column if value is not None]
        assert len(present) == (leaf is not None)
        assert all(value is leaf for value in present)


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_by_role_is_what_torch_calls_parameters_and_buffers(case: Case) -> None:
    module = case.make()
    parameters, buffers, rest = tree.partition(module, "parameter", "buffer")
    if case.make_twin is not None:
        twin = case.twin(module)
        assert set(tree.named_leaves(parameters)) == {name for name, _ in twin.named_parameters()}
        assert set(tree.named_leaves(buffers)) == {name for name, _ in twin.named_buffers()}
        assert tree.leaves(rest) == []


def test_by_path_type_and_predicate() -> None:
    module = Sequential(Norm(), MLP()).initialize(0)
    first, biases, matrices, rest = tree.partition(
        module, "layers.0", "**.bias", lambda path, leaf: leaf.ndim == 2
    )
    assert len(tree.leaves(first)) == 5
    assert list(tree.named_leaves(biases)) == ["layers.1.first.bias", "layers.1.second.bias"]
    assert list(tree.named_leaves(matrices)) == ["layers.1.first.weight", "layers.1.second.weight"]
    assert tree.leaves(rest) == []
    dense, _ = tree.partition(module, Dense)
    assert len(tree.leaves(dense)) == 4


@given(trees())
def test_a_role_means_the_same_alone_and_beside_other_conditions(subject: Any) -> None:
    for role in ("parameter", "buffer", "trainable", "frozen"):
        alone = tree.partition(subject, role)
        nothing, *beside = tree.partition(subject, lambda path, leaf: False, role)
        assert tree.leaves(nothing) == []
        for one, two in zip(alone, beside, strict=True):
            assert_same(one, two)


def test_frozen_parameters_are_parted_from_trained_ones() -> None:
    module = tree.select(MLP().initialize(0), "first").freeze()
    trained, rest = tree.partition(module, "trainable")
    assert list(tree.named_leaves(trained)) == ["second.weight", "second.bias"]
    assert list(tree.named_leaves(rest)) == ["first.weight", "first.bias"]


def test_a_tied_leaf_goes_to_one_part() -> None:
    module: Any = TiedParameter().initialize(0)
    decoder, rest = tree.partition(module, "decoder")
    assert decoder.encoder.weight is module.encoder.weight
    assert rest.encoder.weight is None
    assert rest.encoder.bias is module.encoder.bias


def test_a_misspelled_path_is_an_error_and_an_empty_part_is_none() -> None:
    module = MLP().initialize(0)
    with pytest.raises(LookupError, match="Near misses: first"):
        tree.partition(module, "frist")
    frozen, _ = tree.partition(module, "frozen")
    assert tree.leaves(frozen) == []


def test_a_part_computes_gradients_of_its_leaves_only() -> None:
    module = MLP().initialize(0)
    trained, rest = tree.partition(module, "**.bias")
    x = torch.ones(2, 4)
    grads: Any = torch.func.grad(lambda part: tree.combine(part, rest)(x).sum())(trained)
    assert grads.first.weight is None
    full: Any = torch.func.grad(lambda m: m(x).sum())(module)
    assert torch.equal(grads.first.bias, full.first.bias)


def test_combine_takes_the_first_that_is_no_hole() -> None:
    a, b = Dense().initialize(0), Dense().initialize(1)
    part, _ = tree.partition(a, "bias")
    made = tree.combine(part, b)
    assert made.bias is a.bias
    assert made.weight is b.weight
    with pytest.raises(TypeError, match="at least one tree"):
        tree.combine()


def test_the_parts_of_a_lone_leaf_are_put_together() -> None:
    leaf: Any = torch.ones(2)
    parts: Any = tree.partition(leaf, lambda path, value: False)
    assert parts[0] is None and tree.combine(*parts) is leaf
