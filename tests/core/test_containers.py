"""Tuples, named tuples, dicts and registered classes in a module: taken apart and put together."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import pytest
import torch

from parallax import Module, Parameter, tree
from parallax.core.containers import built, changed, child_at, keys_of, opened
from parallax.core.frozendict import FrozenDict
from parallax.nn import Linear
from tests.corpus.foreign import Foreign


class Sides(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    ("container", "keys"),
    [
        ((1, 2), (0, 1)),
        ((), ()),
        (Sides(1, 2), ("left", "right")),
        (FrozenDict(b=1, a=2), ("b", "a")),
    ],
)
def test_a_container_is_its_class_constants_and_children(container: Any, keys: Any) -> None:
    constants, children = opened(container) or ((), ())
    assert keys_of(type(container), constants, len(children)) == keys
    assert tuple(children) == tuple([child_at(container, key) for key in keys])
    same = built(type(container), constants, children)
    assert type(same) is type(container) and same == container
    other = changed(container, dict.fromkeys(keys[:1], 7))
    assert list(opened(other)[1]) == [7, 2][: len(keys)]  # type: ignore[index]  # a container
    assert container == same  # nothing is written to


@pytest.mark.parametrize("value", [[1], {1: 2}, torch.Size([2]), "text", None, 3])
def test_other_values_are_no_containers_of_a_module(value: Any) -> None:
    assert opened(value) is None


class Pair(NamedTuple):
    layer: Module
    weight: Parameter


class Held(Module):
    layers: tuple[Module, ...]
    pair: Pair
    named: dict[str, Module]
    box: Foreign


def test_modules_are_found_in_every_container() -> None:
    layers = [Linear(1, 1).initialize(k) for k in range(6)]
    held: Any = Held(
        (layers[0],),
        Pair(layers[1], cast(Any, torch.ones(1))),
        {"a": layers[2]},
        Foreign(layers[3], layers[4], "tag"),
    )
    assert [m for m in held.modules() if isinstance(m, Linear)] == layers[:5]
    assert tree.size(held) == 11
