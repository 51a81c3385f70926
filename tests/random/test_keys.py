"""Keys: how they are made, copied and saved, and that they are a node of every tree."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import Module, random, tree
from parallax.random import Key
from tests.compiling import make_compiled

# -- making ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_a_key_holds_the_bits_of_its_seed(seed: int) -> None:
    key = random.key(seed)
    assert key.data.dtype is torch.int64 and key.data.device.type == "cpu"
    assert key.shape == () and int(key.data) == seed


def test_unsigned_seeds_keep_all_64_bits() -> None:
    assert int(random.key(2**64 - 1).data) == -1
    assert int(random.key(2**63).data) == -(2**63)


def test_a_tensor_of_seeds_is_a_stack_of_keys() -> None:
    seeds = torch.arange(3, dtype=torch.int32)
    keys = random.key(seeds)
    assert [int(key.data) for key in keys] == [0, 1, 2]
    seeds += 1
    assert [int(key.data) for key in keys] == [0, 1, 2], "the seeds are copied"


@pytest.mark.parametrize("seed", [1.0, True, "1", None, torch.tensor(1.0), torch.tensor(True)])
def test_a_seed_is_an_integer(seed: Any) -> None:
    with pytest.raises(TypeError, match=r"key\(seed\)"):
        random.key(seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_fits_in_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="at most 64 bits"):
        random.key(seed)


def test_from_state_reads_every_byte_and_advances_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    key = random.from_state(generator)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(random.from_state(state).data, key.data)
    torch.randn(1, generator=generator)
    assert not torch.equal(random.from_state(generator).data, key.data)


@pytest.mark.parametrize("state", [0, torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8), None])
def test_from_state_takes_states_only(state: Any) -> None:
    with pytest.raises(TypeError, match="from_state"):
        random.from_state(state)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros((), dtype=torch.int32), "int64"),
        (torch.zeros(()), "int64"),
        (torch.zeros((), dtype=torch.int64, device="meta"), "CPU"),
        (3, "int64 tensor"),
    ],
)
def test_a_key_is_int64_on_the_cpu(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Key(data)


def test_keys_are_immutable() -> None:
    key = random.key(0)
    with pytest.raises(AttributeError, match=r"Key\.data"):
        key.data = torch.tensor(1)
    with pytest.raises(AttributeError, match=r"Key\.data"):
        del key.data


def test_repr_shows_the_bits() -> None:
    assert repr(random.key(255)) == "Key(0x00000000000000ff)"
    assert repr(random.split(random.key(0), 3)) == "Key(shape=(3,))"
    torch.vmap(lambda key: (repr(key), key.data)[1])(random.split(random.key(0)))


# -- a node of every tree --------------------------------------------------------------------------


def test_both_registries_see_one_leaf() -> None:
    key = random.key(3)
    node: Any = key
    assert optree.tree_leaves(node)[0] is key.data
    assert torch_pytree.tree_leaves(key)[0] is key.data
    assert tree.leaves({"a": key})[0] is key.data
    again: Any = optree.tree_map(lambda x: x, node)
    assert type(again) is Key and again.data is key.data


def test_a_key_can_be_a_field_of_a_module() -> None:
    class Noise(Module):
        key: Key

        def forward(self, x: Tensor) -> Tensor:
            return x + random.normal(self.key, x.shape)

    noise = Noise(random.key(0))
    assert torch.equal(noise(torch.zeros(3)), random.normal(random.key(0), (3,)))


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_key_of_a_number_that_changes_between_compiled_calls() -> None:
    def draw(seed: int) -> Tensor:
        return random.normal(random.key(seed), (2,))

    compiled = make_compiled(draw, backend="eager")
    for seed in (0, 1, 2, -3, 2**40):
        assert torch.equal(compiled(seed), draw(seed))


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k))])
def test_copies_hold_the_same_bits(how: Callable[[Any], Any]) -> None:
    assert torch.equal(how(random.key(9)).data, random.key(9).data)


def test_a_used_leaf_can_be_saved_and_loaded_with_weights_only() -> None:
    key = random.key(1)
    random.normal(key)
    buffer = io.BytesIO()
    torch.save({"key": key.data}, buffer)
    buffer.seek(0)
    assert torch.equal(torch.load(buffer, weights_only=True)["key"], key.data)
