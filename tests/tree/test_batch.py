"""stack and unstack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

from parallax import random, tree
from tests.corpus import (
    FLOAT,
    MLP,
    MODULES,
    Case,
    Dense,
    Norm,
    Sequential,
    TiedParameter,
    example_input,
)
from tests.tree.strategies import trees, values


@pytest.mark.parametrize("case", MODULES, ids=str)
def test_unstack_is_the_inverse_of_stack(case: Case) -> None:
    members = [case.make(seed) for seed in range(3)]
    stacked = tree.stack(members)
    if tree.leaves(stacked):
        again = tree.unstack(stacked)
        assert len(again) == 3
        for one, two in zip(again, members, strict=True):
            assert tree.structure(one) == tree.structure(two)
            for a, b in zip(tree.leaves(one), tree.leaves(two), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=0)


@given(trees())
def test_a_stack_of_one_tree_twice_comes_apart_again(subject: Any) -> None:
    stacked = tree.stack([subject, subject])
    assert tree.structure(stacked) == tree.structure(subject)
    if tree.leaves(stacked):
        for member in tree.unstack(stacked):
            assert tree.structure(member) == tree.structure(subject)
            assert values(tree.flatten(member)[0]) == values(tree.flatten(subject)[0])


@pytest.mark.parametrize("case", FLOAT, ids=str)
def test_vmap_over_a_stack_is_the_loop_over_its_members(case: Case) -> None:
    if case.name == "empty":
        return
    members, x = [case.make(seed) for seed in range(3)], example_input()
    made = torch.vmap(lambda m: m(x))(tree.stack(members))
    torch.testing.assert_close(made, torch.stack([member(x) for member in members]))


def test_leaves_are_those_of_torch_s_stack_module_state() -> None:
    members: list[Any] = [Dense().initialize(seed) for seed in range(3)]
    twins: list[nn.Module] = []
    for member in members:
        twin: Any = nn.Linear(4, 4)
        with torch.no_grad():
            twin.weight.copy_(member.weight)
            twin.bias.copy_(member.bias)
        twins.append(twin)
    expected, _ = torch.func.stack_module_state(twins)
    stacked: Any = tree.stack(members)
    assert torch.equal(stacked.weight, expected["weight"])
    assert torch.equal(stacked.bias, expected["bias"])


def test_a_stack_keeps_holes_and_shares_a_tie() -> None:
    bare = tree.stack([Dense(bias=False).initialize(0), Dense(bias=False).initialize(1)])
    assert bare.bias is None
    tied = tree.stack([TiedParameter().initialize(0), TiedParameter().initialize(1)])
    assert tied.encoder.weight is tied.decoder.weight


@pytest.mark.parametrize(
    ("one", "two", "says"),
    [
        # torch.func.stack_module_state runs both as the first
        (MLP(torch.relu), MLP(torch.sigmoid), "at MLP.activation the first has the constant"),
        (Norm(), Norm(eps=0.1), "at Norm.eps the first has the constant 1e-05"),
        (Dense(), Dense(4, 3), r"at weight the first has shape \(4, 4\), .* shape \(3, 4\)"),
        (Dense(), Dense(bias=False), "at bias the first has a leaf, the other has a hole"),
        (Dense(bias=False), Dense(), "at bias the first has a hole, the other has a leaf"),
    ],
)
def test_what_differs_is_refused_with_its_path(one: Any, two: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tree.stack([one.initialize(0), two.initialize(0)])


def test_differing_modes_marks_and_dtypes_are_refused_with_their_path() -> None:
    module = Sequential(Dense(), torch.relu).initialize(0)
    with pytest.raises(ValueError, match=r"at the root the first has mode 'train', .* mode 'eval'"):
        tree.stack([module, module.eval()])
    frozen = tree.select(module, "layers.0.bias").freeze()
    with pytest.raises(ValueError, match=r"at layers.0.bias the first has a trained leaf, .*froz"):
        tree.stack([module, frozen])
    with pytest.raises(ValueError, match=r"dtype torch.float32, .* dtype torch.float64"):
        tree.stack([module, tree.to(module, dtype=torch.float64)])
    assert tree.select(tree.stack([frozen, frozen]), "frozen").count() == 1


def test_what_cannot_be_stacked_says_why() -> None:
    with pytest.raises(TypeError, match="at least one tree"):
        tree.stack([])
    with pytest.raises(TypeError, match=r"weight is .*, which is not a tensor. Initialize first"):
        tree.stack([Dense(), Dense()])


def test_random_states_stack_to_keys_and_come_back() -> None:
    members = [Dense().initialize(0).train(random.key(seed)) for seed in (3, 4)]
    stacked = tree.stack(members)
    for member, again in zip(members, tree.unstack(stacked), strict=True):
        assert torch.equal(member.rng.data, again.rng.data)
    with pytest.raises(ValueError, match="some trees hold an rng"):
        tree.stack([members[0], Dense().initialize(0)])


def test_unstack_says_where_sizes_differ() -> None:
    with pytest.raises(ValueError, match="the leading sizes differ: a has 2, b has 3"):
        tree.unstack({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match="b has no dimension"):
        tree.unstack({"a": torch.ones(2), "b": torch.ones(())})
    with pytest.raises(ValueError, match="no leaf to tell"):
        tree.unstack({"a": None})
    with pytest.raises(TypeError, match=r"weight is .*not a tensor"):
        tree.unstack(Dense())


def test_unstacked_leaves_are_views() -> None:
    stacked = {"a": torch.zeros(2, 3)}
    one, _ = tree.unstack(stacked)
    assert one["a"].data_ptr() == stacked["a"].data_ptr()
