"""ravel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from parallax import tree
from tests.corpus import FLOAT, MODULES, Case, Dense, Norm, Precisions, TiedParameter, example_input
from tests.tree.strategies import trees, values


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_unravel_is_the_inverse_of_ravel(case: Case) -> None:
    module = case.make()
    flat, unravel = tree.ravel(module)
    assert flat.ndim == 1
    again = unravel(flat)
    assert tree.structure(again) == tree.structure(module)
    assert values(tree.flatten(again)[0]) == values(tree.flatten(module)[0])


@given(trees())
def test_unravel_is_the_inverse_of_ravel_for_any_tree(subject: Any) -> None:
    flat, unravel = tree.ravel(subject)
    assert values(tree.flatten(unravel(flat))[0]) == values(tree.flatten(subject)[0])
    assert torch.equal(tree.ravel(unravel(flat))[0], flat)


def test_the_vector_is_that_of_torch() -> None:
    module: Any = Dense().initialize(0)
    expected = nn.utils.parameters_to_vector([module.weight, module.bias])
    assert torch.equal(tree.ravel(module)[0], expected)


def test_dtypes_promote_in_the_vector_and_come_back() -> None:
    module = Precisions().initialize(0)
    flat, unravel = tree.ravel(module)
    assert flat.dtype == torch.complex128
    assert flat.shape == (10,)
    again = unravel(2 * flat)
    assert again.half.dtype == torch.float16
    assert torch.equal(again.single, 2 * module.single)
    assert again.counts is module.counts


def test_a_tie_is_in_the_vector_once_and_integers_are_not() -> None:
    assert tree.ravel(TiedParameter().initialize(0))[0].shape == (16 + 4 + 4,)
    assert tree.ravel(Norm().initialize(0))[0].shape == (16,)


def test_a_tree_without_numbers_has_an_empty_vector() -> None:
    subject = {"a": None, "n": torch.arange(2)}
    flat, unravel = tree.ravel(subject)
    assert flat.shape == (0,)
    assert unravel(flat)["n"] is subject["n"]


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_it_is_differentiable(case: Case) -> None:
    module, x = case.make(), example_input()
    if not tree.leaves(module):
        return
    flat, unravel = tree.ravel(module)
    grads = torch.func.grad(lambda vector: unravel(vector)(x).sum())(flat)
    expected: Any = torch.func.grad(lambda m: m(x).sum())(module)
    torch.testing.assert_close(grads, tree.ravel(expected)[0])


def test_both_ways_can_be_vmapped() -> None:
    members = [Dense().initialize(seed) for seed in range(3)]
    stacked, x = tree.stack(members), example_input()
    flats = torch.vmap(lambda m: tree.ravel(m)[0])(stacked)
    assert torch.equal(flats, torch.stack([tree.ravel(member)[0] for member in members]))
    unravel = tree.ravel(members[0])[1]
    made = torch.vmap(lambda vector: unravel(vector)(x))(flats)
    torch.testing.assert_close(made, torch.stack([member(x) for member in members]))


def test_a_hessian_of_the_vector_is_a_matrix() -> None:
    flat, unravel = tree.ravel({"a": torch.ones(2), "b": torch.ones(())})

    def loss(vector: Tensor) -> Tensor:
        parts = unravel(vector)
        return (parts["a"] ** 2).sum() * parts["b"]

    hessian = torch.func.hessian(loss)(flat)
    assert torch.equal(hessian, torch.tensor([[2.0, 0, 2], [0, 2, 2], [2, 2, 0]]))


def test_a_vector_of_another_shape_and_several_devices_are_refused() -> None:
    _, unravel = tree.ravel(Dense().initialize(0))
    with pytest.raises(ValueError, match=r"shape \(20,\), got a tensor of shape \(3,\)"):
        unravel(torch.ones(3))
    with pytest.raises(ValueError, match="on cpu and meta; move them first"):
        tree.ravel([torch.ones(1), torch.ones(1, device="meta")])
