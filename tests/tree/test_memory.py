"""The memory of tensors: which share bytes, which addresses lie in it, and who else has it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from parallax._compat.memory import Addresses, is_whole, meet, span_of, storage_of, users_of


def bytes_of(tensor: Tensor) -> set[int]:
    """The bytes of a tensor in its storage, one element at a time."""
    item, start = tensor.element_size(), tensor.storage_offset()
    places = [
        int(start + sum(i * step for i, step in zip(index, tensor.stride(), strict=True)))
        for index in itertools.product(*map(range, tensor.shape))
    ]
    return {place * item + k for place in places for k in range(item)}


BASE = torch.arange(24.0)
GRID = BASE.view(4, 6)
VIEWS = {
    "all": BASE, "first row": GRID[0], "last rows": GRID[2:], "a column": GRID[:, 1],
    "the next column": GRID[:, 2], "columns": GRID[:, 1:3], "every other": BASE[::2],
    "the others": BASE[1::2], "one": GRID[1, 1], "turned": GRID.T,
    "as bytes": BASE.view(torch.uint8)[7:9], "as halves": BASE.view(torch.float16)[2:5],
    "expanded": BASE[3:4].expand(5), "diagonal": GRID[:, :4].diagonal(),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_two_tensors_meet_where_they_have_a_byte_in_common(name: str) -> None:
    one = VIEWS[name]
    span = span_of(one)
    assert span == (min(bytes_of(one)), max(bytes_of(one)) + 1)
    for other, two in VIEWS.items():
        assert meet(one, two) is bool(bytes_of(one) & bytes_of(two)), other


def test_bytes_that_nobody_can_mark_may_all_be_shared() -> None:
    base = torch.empty(4, 6, device="meta")
    assert meet(base[:, 1], base[:, 2])  # they have none, which is not known
    assert not meet(base[0], base[1])


def test_a_storage_has_a_number_of_its_own() -> None:
    one, two = torch.zeros(3), torch.zeros(3)
    assert storage_of(one) == storage_of(one[1:]) == storage_of(one.detach())
    assert storage_of(one) != storage_of(two)
    assert is_whole(one) and not is_whole(one[1:]) and is_whole(one[:, None])


def test_users_of_a_storage_are_counted() -> None:
    one = torch.zeros(3)
    storage = one.untyped_storage()
    assert users_of(storage) == 1
    view = one[1:]
    assert users_of(storage) == 2
    del view
    assert users_of(storage) == 1


def test_an_address_is_found_in_its_stretch() -> None:
    spans = [(40, 48), (8, 16), (16, 24), (100, 101)]
    found = Addresses(spans)
    assert len(found) == 4
    for address in range(120):
        assert found.hold(address) is any(start <= address < end for start, end in spans)
    assert not Addresses([]).hold(0)
