"""The memory of a tensor: its storage, the bytes it has there, and what it shares with another."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["Addresses", "is_whole", "meet", "span_of", "storage_of", "users_of"]


def storage_of(tensor: Tensor) -> int:
    """A number for the storage of a tensor, which is another's once no tensor is left there."""
    return int(tensor.untyped_storage()._cdata)


def users_of(storage: torch.UntypedStorage) -> int:
    """How many tensors have this storage, apart from the object asked about."""
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor takes all of its storage, if it is dense."""
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def span_of(tensor: Tensor) -> tuple[int, int]:
    """The first byte of a tensor in its storage, and the one after its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    start = tensor.storage_offset() * tensor.itemsize
    reach = 1 + sum([(size - 1) * step for size, step in steps])
    return int(start), int(start + reach * tensor.itemsize)


def meet(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors over one storage have a byte in common; two columns have none."""
    (start, end), (first, last) = span_of(one), span_of(two)
    if end <= first or last <= start:
        return False
    begin = min(start, first)
    if one.is_meta:  # whose bytes cannot be marked
        return True
    marks = torch.zeros(max(end, last) - begin, dtype=torch.bool)
    _bytes_of(one, marks, start - begin).fill_(True)
    return bool(_bytes_of(two, marks, first - begin).any())


def _bytes_of(tensor: Tensor, memory: Tensor, start: int) -> Tensor:
    """The same view of the bytes of a storage."""
    item = tensor.itemsize
    strides = [step * item for step in tensor.stride()]
    return memory.as_strided((*tensor.shape, item), (*strides, 1), start)


class Addresses:
    """Stretches of addresses that have none in common, to look up where an address lies.

    Args:
        spans: the first address of each, and the one after its last.
    """

    __slots__ = ("_borders",)

    def __init__(self, spans: Iterable[tuple[int, int]]) -> None:
        # Beginnings and ends in turn: an address within a stretch has an odd number before it.
        self._borders = [address for span in sorted(spans) for address in span]

    def __len__(self) -> int:
        return len(self._borders) // 2

    def hold(self, address: int) -> bool:
        """Whether an address is in one of them."""
        return bool(bisect_right(self._borders, address) % 2)
