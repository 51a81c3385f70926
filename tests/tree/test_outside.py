"""Containers that only torch's pytree registry knows are trees here, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils import _pytree as torch_pytree

from parallax import tree
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
