"""Trees that do not fit: each error names the first path that differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch

from parallax import Module, tree
from tests.bad_input.errors import says, unchanged, values
from tests.corpus import MLP, SIZE, Branches, Dense, Norm, Sequential, TiedModule, Twig


def wider() -> Any:
    module = MLP().initialize(1)
    return module.replace(first=module.first.replace(bias=torch.zeros(SIZE)))


class Other(Module):
    first: Dense


MISFITS: dict[str, tuple[Callable[[], Any], Callable[[], Any], list[str]]] = {
    "constant": (
        lambda: Norm().initialize(0),
        lambda: Norm(eps=0.5).initialize(0),
        ["Norm.eps", "1e-05", "0.5"],
    ),
    "constant below": (
        lambda: Sequential(Dense(), Norm(eps=0.1)).initialize(0),
        lambda: Sequential(Dense(), Norm(eps=0.2)).initialize(0),
        ["Sequential.layers.1.eps", "0.1", "0.2"],
    ),
    "function": (
        lambda: MLP(torch.tanh).initialize(0),
        lambda: MLP(torch.relu).initialize(0),
        ["MLP.activation", "tanh", "relu"],
    ),
    "class": (
        lambda: Sequential(Dense()).initialize(0),
        lambda: Sequential(Norm()).initialize(0),
        ["Sequential.layers.0", "Dense", "Norm"],
    ),
    "length": (
        lambda: Sequential(Dense()).initialize(0),
        lambda: Sequential(Dense(), Dense()).initialize(0),
        ["Sequential.layers"],
    ),
    "keys": (
        lambda: Branches("a", "b").initialize(0),
        lambda: Branches("a", "c").initialize(0),
        ["Branches.branches", "'b'", "'c'"],
    ),
    "order of keys": (
        lambda: Branches("a", "b").initialize(0),
        lambda: Branches("b", "a").initialize(0),
        ["Branches.branches"],
    ),
    "module for none": (
        lambda: Twig(Twig()).initialize(0),
        lambda: Twig().initialize(0),
        ["Twig.left", "Twig"],
    ),
    "whole": (
        lambda: MLP().initialize(0),
        lambda: Other(Dense()).initialize(0),
        ["MLP", "Other"],
    ),
    "no module": (lambda: MLP().initialize(0), lambda: {"first": 1}, ["MLP", "dict"]),
    "none": (lambda: MLP().initialize(0), lambda: None, ["MLP", "None"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_trees_that_do_not_fit_name_the_first_path_that_differs(name: str) -> None:
    one, other, parts = MISFITS[name][0](), MISFITS[name][1](), MISFITS[name][2]
    before, calls = values(one), []

    def call(a: Any, b: Any) -> Any:
        calls.append(a)
        return a + b

    combines: list[Callable[[], Any]] = [
        lambda: tree.map(call, one, other),
        lambda: one.update(call, other),
        lambda: tree.update(call, one, other),
        lambda: tree.map(lambda a, b, c: call(a, b), one, one, other),
    ]
    for combine in combines:
        with says(ValueError, "do not fit", *parts):
            combine()
    assert calls == [] and unchanged(one, before)


def test_a_misfit_inside_a_plain_container_is_found_too() -> None:
    one = {"model": MLP().initialize(0), "step": torch.ones(())}
    other = {"model": MLP(torch.relu).initialize(0), "step": torch.ones(())}
    with says(ValueError, "do not fit", "activation"):
        tree.map(torch.add, one, other)
    with says(ValueError, "do not fit"):
        tree.map(torch.add, one, {"model": one["model"]})


def test_two_values_for_one_tied_leaf_name_both_paths() -> None:
    tied: Any = TiedModule().initialize(0)
    loose = optree.tree_map(lambda leaf: leaf.clone(), tied)
    with says(ValueError, "one.weight", "other.weight", "tree.tie("):
        tied.update(torch.add, loose)


def test_combine_and_unstack_name_the_path_or_the_sizes() -> None:
    one, other = MLP().initialize(0), MLP(torch.relu).initialize(0)
    with says(ValueError, "MLP.activation"):
        tree.combine(one, other)
    with says(ValueError, "MLP.activation"):
        tree.stack([one, other])
    stacked = tree.stack([one, MLP().initialize(1)])
    uneven = stacked.replace(first=tree.map(lambda x: x[:1], stacked.first))
    with says(ValueError, "weight", "1", "2"):
        tree.unstack(uneven)
