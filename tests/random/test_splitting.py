"""``split`` and ``fold_in``, and what is refused as a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils import _pytree as torch_pytree

from parallax import random, tree
from parallax.random import philox


def test_children_are_the_halves_of_philox_blocks() -> None:
    blocks = [philox.block(7, index, 0, 0, 1) for index in range(2)]
    expected = [half for r in blocks for half in (r[0] | r[1] << 32, r[2] | r[3] << 32)]
    assert [int(k.data) % 2**64 for k in random.split(random.key(7), 4)] == expected


@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 100])
def test_the_first_children_do_not_depend_on_how_many_there_are(n: int) -> None:
    many = random.split(random.key(5), 200).data
    assert torch.equal(random.split(random.key(5), n).data, many[:n])


@pytest.mark.parametrize("n", [0, -1])
def test_split_makes_at_least_one(n: int) -> None:
    key = random.key(0)
    with pytest.raises(ValueError, match="at least 1"):
        random.split(key, n)
    random.split(key)  # it was not used up


@pytest.mark.parametrize("n", [1.0, True, "2"])
def test_split_counts_in_ints(n: Any) -> None:
    with pytest.raises(TypeError, match="n is an int"):
        random.split(random.key(0), n)


def test_fold_in_tells_ints_and_strings_and_children_apart() -> None:
    key = random.key(1)
    folded = [random.fold_in(key, data).data for data in (0, 1, -1, "0", "1", "")]
    children = random.split(key, 8).data
    bits = [int(data) for data in [*folded, *children, key.data]]
    assert len(set(bits)) == len(bits)


def test_fold_in_takes_a_step_counter_as_a_tensor() -> None:
    key = random.key(1)
    for dtype in (torch.int32, torch.int64):
        step = torch.tensor(12, dtype=dtype)
        assert torch.equal(random.fold_in(key, step).data, random.fold_in(key, 12).data)
    big = 2**64 - 1
    assert torch.equal(random.fold_in(key, big).data, random.fold_in(key, -1).data)


@pytest.mark.parametrize("data", [1.0, True, None, torch.tensor(1.0), torch.tensor([1])])
def test_fold_in_takes_ints_and_strings(data: Any) -> None:
    with pytest.raises(TypeError, match="fold_in"):
        random.fold_in(random.key(0), data)


@pytest.mark.parametrize(
    "use", [random.split, random.normal, lambda key: random.fold_in(key, 1), random.bits]
)
@pytest.mark.parametrize("given", [0, torch.tensor(0), None])
def test_only_keys_are_keys(use: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(TypeError, match="must be a Key"):
        use(given)


@pytest.mark.parametrize(
    "use", [random.split, random.normal, lambda key: random.fold_in(key, 1), random.permutation]
)
def test_a_stack_is_not_a_key(use: Callable[..., Any]) -> None:
    keys = random.split(random.key(0), 3)
    with pytest.raises(ValueError, match="single key"):
        use(keys) if use is not random.permutation else use(keys, 3)


def test_a_key_that_was_moved_or_cast_draws_nothing() -> None:
    key = random.key(0)
    leaf = torch.zeros((), dtype=torch.int64, device="meta")
    with pytest.raises(TypeError, match="CPU"):
        random.normal(tree.map(lambda _: leaf, {"k": key})["k"])
    with pytest.raises(TypeError, match="int64"):
        random.normal(torch_pytree.tree_map(lambda x: x.float(), key))
