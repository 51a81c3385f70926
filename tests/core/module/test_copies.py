"""Equality is identity; copies and pickles have equal leaves and structure, and run no code."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, tree
from tests.comparing import same_tree
from tests.core.module.verbs import every_module
from tests.corpus import MLP, Case, Dense, Nested
from tests.saving import pickled, saved


@every_module
def test_equality_and_hash_are_identity(case: Case) -> None:
    one, other = case.make(), case.make()
    assert one != other and one.__eq__(one) is True
    assert len({one, other, one}) == 2
    assert hash(one) == hash(one)


WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickled, saved]


@every_module
@pytest.mark.parametrize("way", WAYS)
def test_copies_keep_values_structure_mode_and_ties(case: Case, way: Callable[[Any], Any]) -> None:
    module = case.make()
    other = way(module)
    assert type(other) is type(module)
    assert other.mode == module.mode
    assert same_tree(module, other)
    assert repr(other) == repr(module)
    for ours, theirs in zip(module.modules(), other.modules(), strict=True):
        assert type(ours) is type(theirs)
        names = [name for name in vars(ours) if not name.startswith("_")]
        assert [name for name in vars(theirs) if not name.startswith("_")] == names


@every_module
@pytest.mark.parametrize("way", WAYS)
def test_uninitialised_modules_can_be_copied_and_then_initialised(
    case: Case, way: Callable[[Any], Any]
) -> None:
    declared = case.declare()
    other = way(declared)
    assert tree.structure(other) == tree.structure(declared)
    if any(isinstance(leaf, Tensor) for leaf in tree.leaves(declared)):
        assert same_tree(declared, other)
    elif tree.leaves(declared):
        assert same_tree(declared.initialize(0), other.initialize(0))


def test_a_copy_shares_the_leaves_and_a_deepcopy_none() -> None:
    module = MLP().initialize(0)
    for ours, theirs in zip(tree.leaves(module), tree.leaves(copy.copy(module)), strict=True):
        assert ours is theirs
    for ours, theirs in zip(tree.leaves(module), tree.leaves(copy.deepcopy(module)), strict=True):
        assert ours.data_ptr() != theirs.data_ptr()


def test_a_deepcopy_of_modules_that_share_a_leaf_keeps_them_sharing() -> None:
    module = Dense().initialize(0)
    pair = copy.deepcopy([module, module.replace(bias=None)])
    assert pair[0].weight is pair[1].weight
    assert pair[0].weight is not module.weight


def test_copies_keep_the_rng_and_what_it_draws() -> None:
    module = Dense().initialize(0).train(3)
    for way in WAYS:
        assert way(module).rng == module.rng


def test_pickles_hold_no_memo_and_no_derived_cache() -> None:
    module = MLP().initialize(0)
    before = len(pickle.dumps(module))
    tree.leaves(module.reset(0).eval())
    tree.structure(module)
    repr(module)
    assert len(pickle.dumps(module)) == before


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_works(protocol: int) -> None:
    module = Nested().initialize(0)
    assert same_tree(module, pickle.loads(pickle.dumps(module, protocol)))


def test_unflatten_and_copies_run_no_user_code() -> None:
    calls: list[str] = []

    class Loud(Module):
        weight: Parameter

        def __init__(self) -> None:
            calls.append("init")
            self.weight = Parameter((1,), init.ones_)

        def __check_init__(self) -> None:
            calls.append("check")

        def __setattr__(self, name: str, value: Any) -> None:
            calls.append(f"set {name}")
            super().__setattr__(name, value)

        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__(name)

    module = Loud().initialize(0)
    assert calls == ["init", "set weight", "check"]
    tree.map(torch.relu, copy.deepcopy(copy.copy(module))).reset(0).eval().split(2)
    module.update(lambda a: a + 1)
    assert len(calls) == 3
