"""Philox4x32-10, the counter-based generator that turns one key into others.

A block is a function of a 64-bit key and a 128-bit counter, so that any child of a key is computed
without the ones before it. Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel
Random Numbers: As Easy as 1, 2, 3", SC'11; ``tests/random/test_philox.py`` holds the known answers
of its authors' library Random123.

The same numbers are computed in two ways: by Python integers, which for a block or two is faster
than any tensor, and by int64 tensors for many.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["block", "halves", "tensor_halves"]

_LOW = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIER = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85

Words = tuple[int, int, int, int]


def block(key: int, c0: int, c1: int, c2: int, c3: int) -> Words:
    """Four 32-bit words from a 64-bit key and a counter of four 32-bit words.

    Args:
        key: 64 bits; the lower 32 are the first word of the key.
        c0: the lowest word of the counter.
        c1: the next.
        c2: the next.
        c3: the highest.

    Returns:
        The four words.

    Example:
        >>> [f"{word:08x}" for word in block(0, 0, 0, 0, 0)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    k0, k1 = key & _LOW, key >> 32 & _LOW
    m0, m1 = _MULTIPLIER
    for _ in range(_ROUNDS):
        a, b = m0 * c0, m1 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & _LOW, a >> 32 ^ c3 ^ k1, a & _LOW
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return c0, c1, c2, c3


def halves(key: int, index: int, domain: int) -> tuple[int, int]:
    """The two halves of a block, as signed 64-bit integers.

    Args:
        key: 64 bits.
        index: the lower 64 bits of the counter.
        domain: the highest word of the counter: blocks of two domains never coincide.

    Returns:
        The lower and the upper half.
    """
    r0, r1, r2, r3 = block(key, index & _LOW, index >> 32 & _LOW, 0, domain)
    return _signed(r0 | r1 << 32), _signed(r2 | r3 << 32)


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


def tensor_halves(keys: Tensor, index: Tensor, domain: int) -> tuple[Tensor, Tensor]:
    """What ``halves`` computes, for int64 tensors of keys and indices that broadcast.

    int64 products wrap, which leaves their 64 bits right; shifts are made logical by masks.
    """
    k0, k1 = keys & _LOW, keys >> 32 & _LOW
    c0, c1 = index & _LOW, index >> 32 & _LOW
    c2, c3 = torch.zeros_like(c0), torch.full_like(c0, domain)
    for _ in range(_ROUNDS):
        a, b = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (b >> 32 & _LOW) ^ c1 ^ k0,
            b & _LOW,
            (a >> 32 & _LOW) ^ c3 ^ k1,
            a & _LOW,
        )
        k0, k1 = k0 + _WEYL[0] & _LOW, k1 + _WEYL[1] & _LOW
    return c0 | c1 << 32, c2 | c3 << 32
