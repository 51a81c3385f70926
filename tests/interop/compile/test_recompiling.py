"""What makes another graph, and what does not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, tree
from tests.comparing import assert_close_trees
from tests.compiling import compiled
from tests.corpus import MLP, Dense, Holder, Norm, TiedModule, TiedParameter
from tests.interop.compile.steps import INPUT, step

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


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


@pytest.mark.parametrize("cls", [MLP, TiedParameter, TiedModule, Holder])
def test_instances_from_everywhere_share_one_graph(cls: type[Any]) -> None:
    module = cls().initialize(0)
    fn, counter = compiled(step)
    for how in WAYS:
        for k in range(3):
            instance = fresh(module, how, k)
            assert_close_trees(fn(instance, INPUT), step(instance, INPUT))
        assert counter.frame_count == 1, how
    fn(fn(module, INPUT), INPUT)
    assert counter.frame_count == 1


def test_fresh_instances_from_raw_optree_do_not_recompile() -> None:
    module = MLP().initialize(0)
    fn, counter = compiled(step)
    for k in range(4):
        instance = fresh(module, "optree", k)
        assert_close_trees(fn(instance, INPUT), step(fresh(module, "optree", k), INPUT))
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
        assert_close_trees(fn(train, INPUT), step(train, INPUT))
        assert_close_trees(fn(held, INPUT), step(held, INPUT))
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
        assert_close_trees(fn(module, INPUT), step(module, INPUT))
    assert counter.frame_count == 2


def test_a_tie_recompiles_once_and_is_kept() -> None:
    fn, counter = compiled(step)
    tied = TiedParameter().initialize(0)
    untied = tied.replace(decoder=tied.decoder.replace(weight=tied.encoder.weight.clone()))
    for module in (tied, untied, tied, untied):
        assert_close_trees(fn(module, INPUT), step(module, INPUT))
    assert counter.frame_count == 2
