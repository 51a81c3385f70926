"""Philox against the known answers of its authors, and both of its forms against each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parallax.random import philox

# From kat_vectors of Random123 1.14, the library of the authors of the paper.
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
words = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(("key", "counter", "answer"), KNOWN)
def test_a_block_is_the_published_one(
    key: tuple[int, int], counter: tuple[int, int, int, int], answer: tuple[int, ...]
) -> None:
    assert philox.block(key[0] | key[1] << 32, *counter) == answer


@given(keys=st.lists(words, min_size=1, max_size=4), index=words, domain=st.integers(0, 2**32 - 1))
def test_tensors_and_integers_give_the_same_bits(keys: list[int], index: int, domain: int) -> None:
    lower, upper = philox.tensor_halves(torch.tensor(keys), torch.tensor(index), domain)
    expected = [philox.halves(key, index, domain) for key in keys]
    assert list(zip(lower.tolist(), upper.tolist(), strict=True)) == expected
