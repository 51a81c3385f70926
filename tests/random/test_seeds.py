"""The generator of the draws against an independent one, word for word."""

from __future__ import annotations

import hashlib
import random as python
import struct

import pytest
import torch

from parallax import random
from parallax.random.seeds import state_of

SEEDS = [0, 1, 12345, 2**63, 2**64 - 1]


def twister(seed: int) -> python.Random:
    """Python's own MT19937 (Matsumoto and Nishimura), its state filled by SHAKE-128 (FIPS 202)."""
    data = hashlib.shake_128(seed.to_bytes(8, "little")).digest(4 * 624)
    made = python.Random()
    made.setstate((3, (*struct.unpack("<624I", data), 624), None))
    return made


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_are_the_words_of_the_published_generator(seed: int) -> None:
    expected = twister(seed)
    words = [expected.getrandbits(32) << 32 | expected.getrandbits(32) for _ in range(700)]
    drawn = random.bits(random.key(seed), (700,))
    assert [word % 2**64 for word in drawn.tolist()] == words


@pytest.mark.parametrize("seed", SEEDS)
def test_uniform_numbers_are_its_lowest_bits(seed: int) -> None:
    expected = twister(seed)
    single = [(expected.getrandbits(32) & (2**24 - 1)) / 2**24 for _ in range(9)]
    assert random.uniform(random.key(seed), (9,)).tolist() == single


def test_a_state_is_that_of_a_seeded_generator() -> None:
    generator = torch.Generator()
    generator.set_state(state_of(7))
    expected = twister(7)
    drawn = torch.empty(5, dtype=torch.int64).random_(0, 1000, generator=generator)
    assert drawn.tolist() == [expected.getrandbits(32) % 1000 for _ in range(5)]
