"""Which classes are nodes of a tree, and how generated code reads their attributes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parallax import nn, registry
from parallax.core.nodes import NODES, Instance, is_module, is_node, new_with_dict, reading
from tests.corpus import MLP


class Pair:
    """A class that a test registers."""

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


def test_modules_are_known_by_their_layout() -> None:
    assert is_module(MLP()) and is_module(nn.Linear(2, 3))
    for value in (MLP, torch.nn.Linear(2, 3), torch.ones(1), None, (), "Linear"):
        assert not is_module(value)


def test_a_registered_class_is_a_node_and_no_module() -> None:
    assert is_node(MLP) and not is_node(torch.nn.Linear) and not is_node(tuple)
    assert not is_node(Pair)
    registry.register(Pair, lambda p: ((p.a, p.b), "kept"), lambda _, ab: Pair(*ab))
    assert is_node(Pair) and not is_module(Pair(1, 2))
    children, metadata = NODES[Pair].flatten(Pair(1, 2))
    assert (tuple(children), metadata) == ((1, 2), "kept")
    assert NODES[Pair].unflatten(metadata, (3, 4)).b == 4

    class Below(Pair):
        pass

    assert not is_node(Below)  # lookup is by exact type


def test_a_module_before_its_init_has_no_structure_and_no_rng() -> None:
    made = new_with_dict(Instance)
    assert made._spec is None and made._rng is None and vars(made) == {}
    with pytest.raises(AttributeError):
        _ = made._leaves  # type: ignore[attr-defined]  # a slot without a value
    other = new_with_dict(Instance)
    vars(made)["_spec"] = 1
    assert vars(other) == {} and other._spec is None


@pytest.mark.parametrize("name", ["weight", "0", "class", "a b", "über"])
def test_code_reads_an_attribute_of_any_name(name: str) -> None:
    made: Any = new_with_dict(Instance)
    vars(made)[name] = 7
    assert eval(reading("m", name), {"m": made}) == 7
