"""Containers that only torch's pytree registry knows are trees here, too."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from enum import Enum
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import tree
from parallax.core.frozendict import FrozenDict
from parallax.nn import Linear
from tests.compiling import compiled


class Pair:
    """Known to torch, and not to optree."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first = first
        self.second = second


def register(cls: type[Pair]) -> None:
    torch_pytree.register_pytree_node(
        cls,
        lambda pair: ([pair.first, pair.second], None),
        lambda children, _: cls(*children),
        serialized_type_name=f"tests.tree.test_outside.{cls.__name__}",
    )


register(Pair)


def test_a_class_that_torch_takes_apart_is_a_node() -> None:
    pair = Pair(torch.ones(2), {"b": torch.zeros(1)})
    found = tree.map(lambda leaf: leaf + 1, [pair])[0]
    assert type(found) is Pair
    torch.testing.assert_close(
        [found.first, found.second["b"]], [torch.full((2,), 2.0), torch.ones(1)]
    )
    assert list(tree.named_leaves(pair)) == ["0", "1.b"]
    assert tree.structure(pair) == tree.structure(found)
    assert tree.structure(pair) != tree.structure(Pair(torch.ones(2), torch.ones(1)))


def test_a_node_beside_another_container_is_named() -> None:
    with pytest.raises(ValueError, match="a Pair"):
        tree.map(torch.add, {"p": Pair(torch.ones(1), torch.ones(1))}, {"p": [torch.ones(1)] * 2})


def test_a_tensordict_is_a_tree() -> None:
    tensordict = pytest.importorskip("tensordict")
    batch = tensordict.TensorDict(
        {"x": torch.ones(5, 2), "inner": {"y": torch.zeros(5)}}, batch_size=[5]
    )
    assert set(tree.named_leaves(batch)) == {"x", "inner.y"}
    torch.testing.assert_close(tree.norm(batch), torch.tensor(10.0).sqrt())
    doubled = tree.add(batch, batch)
    assert type(doubled) is type(batch) and doubled.batch_size == batch.batch_size
    torch.testing.assert_close(doubled["x"], 2 * batch["x"])


@pytest.mark.usefixtures("fresh_dynamo")
def test_seen_first_in_a_trace() -> None:
    class Other(Pair):
        """Which nothing has opened yet."""

    register(Other)
    fn, counter = compiled(lambda pairs: tree.map(lambda leaf: leaf + 1, pairs))
    for value in (1.0, 2.0):
        found = fn([Other(torch.full((2,), value), [torch.ones(1)])])[0]
        assert type(found) is Other
        torch.testing.assert_close(found.first, torch.full((2,), value + 1))
        torch.testing.assert_close(found.second, [torch.full((1,), 2.0)])
    assert counter.frame_count == 1


class Sides(NamedTuple):
    left: Any
    right: Any


class Name:
    """A key by value, which dynamo does not take for a constant."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and self.text == other.text


NAME = Name("a")


class Colour(Enum):
    RED = 1


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: {"b": x, "a": [x, (x, None)], 1: {}}, id="dict"),
        pytest.param(lambda x: OrderedDict(b=x, a=Sides(x, [])), id="ordered"),
        pytest.param(lambda x: FrozenDict(b=x, a=(x, 2.0, "text", x.dtype)), id="frozen"),
        pytest.param(lambda x: {Colour.RED: x, (1, 2): [x], 2.5: x}, id="keys"),
        pytest.param(lambda x: {NAME: x}, id="objects"),
        pytest.param(lambda x: [deque([x, x]), x], id="deque"),
        pytest.param(lambda x: defaultdict(list, {"b": x, "a": [x]}), id="defaultdict"),
        pytest.param(lambda x: {"p": Pair(x, {"q": x})}, id="torch's"),
        pytest.param(
            lambda x: {"layers": [Linear(2, 2, bias=False).replace(weight=x)]}, id="module"
        ),
        pytest.param(lambda x: torch.max(x, 0), id="structseq"),
        pytest.param(lambda x: (), id="empty"),
    ],
)
def test_containers_are_taken_apart_in_traces_as_in_eager_code(make: Any) -> None:
    x = torch.arange(4.0).reshape(2, 2)

    def fn(given: Any, x: Tensor) -> Any:
        made = make(x)
        paths = list(tree.named_leaves(made))
        doubled = tree.map(lambda a, b: (a, b, a) if isinstance(a, Tensor) else a, given, made)
        return doubled, tree.leaves(made), paths

    traced = torch.compile(fn, backend="eager", fullgraph=True)
    expected, ours = fn(make(x), x), traced(make(x), x)
    assert tree.structure(ours) == tree.structure(expected)
    assert tree.equal(ours, expected)
    with pytest.raises(ValueError, match="do not fit together"):
        fn({"other": x}, x)


@pytest.mark.usefixtures("fresh_dynamo")
def test_other_containers_are_refused_in_traces() -> None:
    x = torch.ones(2)
    fn = torch.compile(lambda a, b: tree.map(torch.add, a, b), backend="eager", fullgraph=True)
    for other in ({"a": x}, {"a": [x], "c": x}, {"a": x, "b": [x]}, [x, x]):
        with pytest.raises(Exception, match="do not fit together"):
            fn({"a": [x], "b": x}, other)
