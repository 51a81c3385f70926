"""Random state as a value: what ``rng`` may be, and how every module gets its own.

A seed is hashed with the names of what it is for (BLAKE2b), so that no two modules, parameters
or uses share a stream and none tells about another. Nothing given as ``rng`` is advanced.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
import warnings
from typing import Any

import torch
from torch import Tensor

__all__ = ["Rng", "Source", "derive", "generator_of", "seed_of", "source_of"]

Rng = int | torch.Generator | Tensor
"""What can be given as ``rng``: a seed, a generator, or a generator's state as a ByteTensor."""

_BYTES = 8
_STATE_BYTES = 5056  # torch's CPU generator: an mt19937 and the spare normal draws
_MT_WORDS = 624


def derive(seed: int, *names: Any) -> int:
    """A 64-bit seed for the purpose that ``names`` say, independent of every other purpose.

    Args:
        seed: the parent seed.
        *names: strings and ints.

    Returns:
        The derived seed.

    Example:
        >>> derive(0, "init", "weight") != derive(0, "init", "bias")
        True
    """
    digest = hashlib.blake2b(digest_size=_BYTES)
    digest.update((seed % 2**64).to_bytes(_BYTES, "little"))
    for name in names:
        text = f"{type(name).__name__}:{name}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def seed_of(rng: Rng) -> int:
    """The 64-bit seed that any form of ``rng`` stands for; the form itself is only read.

    Raises:
        TypeError: if ``rng`` is none of the forms.
    """
    return source_of(rng).seed


def generator_of(seed: int) -> torch.Generator:
    """A CPU generator that is a function of all 64 bits of ``seed``.

    ``Generator.manual_seed`` keeps 32 bits of a seed, so that 65,000 of them likely hold two
    equal streams; here the whole state of the Mersenne twister is filled from SHAKE-128.
    """
    generator = torch.Generator()
    generator.set_state(_state_of(seed))
    return generator


def _state_of(seed: int) -> Tensor:
    words = hashlib.shake_128(seed.to_bytes(_BYTES, sys.byteorder)).digest(4 * _MT_WORDS)
    twister = torch.frombuffer(bytearray(words), dtype=torch.int32).to(torch.int64) & 0xFFFFFFFF
    state = torch.Generator().manual_seed(seed % 2**63).get_state()
    # The layout of the state: the seed (8 bytes), how many words are left before the next twist
    # and whether it was seeded (4 each), the next word's index (8), then one word per 8 bytes.
    state[24 : 24 + 8 * _MT_WORDS] = twister.view(torch.uint8)
    return state


class Source:
    """The rng of a whole tree: a seed, and the form in which modules get theirs."""

    __slots__ = ("form", "seed")

    def __init__(self, seed: int, form: str) -> None:
        self.seed = seed
        self.form = form

    def of(self, stream: int) -> Any:
        """The rng of the module with this stream, in the form the tree was given."""
        seed = derive(self.seed, "module", stream)
        if self.form == "seed":
            return seed % 2**63
        return generator_of(seed) if self.form == "generator" else _state_of(seed)

    def warn_if_same(self, before: Source | None) -> None:
        """Warns when a tree is given the very state it has."""
        if before is not None and before.seed == self.seed:
            warnings.warn(
                "reset() was given the state this tree already has, so every random number "
                "repeats. Give each step its own: rng = torch.random.get_rng_state(), or a seed "
                "that counts.",
                UserWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        return f"Source({self.form})"

    def __reduce__(self) -> Any:
        return Source, (self.seed, self.form)


def source_of(rng: Rng) -> Source:
    """The source that any form of ``rng`` stands for.

    Args:
        rng: an int seed, a ``torch.Generator`` or its state as a ByteTensor; only read.

    Returns:
        A source whose modules get the same form.

    Raises:
        TypeError: if ``rng`` is none of the forms.
    """
    if isinstance(rng, torch.Generator):
        return Source(_digest(rng.get_state()), "generator")
    if isinstance(rng, Tensor) and rng.dtype is torch.uint8 and rng.ndim == 1:
        return Source(_digest(rng), "state")
    if isinstance(rng, int) and not isinstance(rng, bool):
        return Source(derive(rng, "seed"), "seed")
    raise TypeError(
        f"rng must be an int seed, a torch.Generator, or a generator's state such as "
        f"torch.random.get_rng_state(); got {type(rng).__name__}"
    )


def _digest(state: Tensor) -> int:
    flat = state.cpu().contiguous()
    # 1 us for the 5 kB of a state; by way of a list it is 50, iterating over the storage 7,000.
    data = ctypes.string_at(flat.data_ptr(), flat.numel())
    return int.from_bytes(hashlib.blake2b(data, digest_size=_BYTES).digest(), "little")
