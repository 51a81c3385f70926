"""What raw optree sees: children, and beside them what is no child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor

from parallax import Module, Parameter, tree
from tests.corpus import Dense


class Step(Module):
    function: Module | Callable[[Tensor], Tensor]
    several: tuple[Module | Callable[[Tensor], Tensor] | float, ...]
    weight: Parameter


def step(function: Any, last: Any = 1) -> Any:
    return Step(function, (torch.sin, Dense(), last), torch.ones(2))


def spec_of(module: Any) -> Any:
    return optree.tree_structure(module, none_is_leaf=True)


def test_a_constant_in_a_childs_place_has_no_leaves_and_comes_back() -> None:
    module = step(torch.tanh).initialize(0)
    leaves, spec = optree.tree_flatten(module, none_is_leaf=True)
    assert [id(leaf) for leaf in leaves] == [id(leaf) for leaf in tree.leaves(module)]
    made: Any = optree.tree_unflatten(spec, leaves)
    assert made.function is torch.tanh and made.several[0] is torch.sin and made.several[2] == 1
    assert tree.structure(made) == tree.structure(module)


@pytest.mark.parametrize("other", [step(torch.cos), step(torch.tanh, 2), step(torch.tanh, True)])
def test_specs_differ_where_such_a_constant_does(other: Any) -> None:
    one = spec_of(step(torch.tanh))
    assert one == spec_of(step(torch.tanh)) and hash(one) == hash(spec_of(step(torch.tanh)))
    assert one != spec_of(other)
    with pytest.raises(ValueError, match="ismatch custom node data"):
        optree.tree_map(lambda a, b: a, step(torch.tanh), other)


def test_specs_show_such_a_constant() -> None:
    assert "Aside[3.5]" in repr(spec_of(step(3.5)))
