"""Which memory a donated step may write: that of tensors that share it with no other.

A kernel that writes in place is right only where every tensor it writes is dense and alone in its
memory. A leaf may be anything else: an expanded tensor, a slice of a larger one, a window over
another leaf, a view of a tensor that the caller still holds, an array of NumPy's. Such leaves and
moments are copied, and the copies are written.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

import torch
from torch import Tensor

from parallax._compat import kernels, memory, shards

__all__ = ["PLAIN", "Memory", "make_private", "memory_of"]

PLAIN = (Tensor, torch.nn.Parameter)
"""The classes of tensors that torch's fused kernels and those over lists take."""


class Memory:
    """The memory that the last donated step of a run wrote.

    Its tensors need not be examined again: another tensor in their memory must be made of them, as
    gradients that are views of parameters are, and those are compared by address.

    Args:
        leaves: of the model after the step.
        chosen: the indices of those that were stepped.
        written: these, and their moments.
    """

    __slots__ = ("_addresses", "_apart", "_chosen", "_leaves")

    def __init__(
        self, leaves: Sequence[Any], chosen: Sequence[int], written: Iterable[Tensor]
    ) -> None:
        self._chosen = chosen
        self._leaves = [None if t is None else weakref.ref(t) for t in leaves]
        spans = []
        for tensor in map(_local, written):
            storage = tensor.untyped_storage()
            spans.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
        self._addresses = memory.Addresses(spans)
        self._apart: set[int] = set()

    def covers(self, chosen: Sequence[int]) -> bool:
        """Whether all leaves that are to be stepped were stepped before."""
        return chosen is self._chosen or set(chosen).issubset(self._chosen)

    def is_of(self, leaves: Sequence[Any]) -> bool:
        """Whether these are the leaves of the last step, the very tensors."""
        if len(leaves) != len(self._leaves):
            return False
        held = [None if ref is None else ref() for ref in self._leaves]
        return all(map(is_, held, leaves))

    def is_apart_from(self, tensors: Sequence[Tensor]) -> bool:
        """Whether none of the tensors lies in it."""
        if not set(map(type, tensors)).issubset(PLAIN):
            if any(map(_is_unknown, tensors)):
                return False
            tensors = list(map(_local, tensors))
        if self._apart.issuperset(map(Tensor.data_ptr, tensors)):
            return True  # gradients come in the same few places
        places = set(map(Tensor.data_ptr, tensors))
        if any(map(self._addresses.hold, places)):
            return False
        if len(self._apart) > 16 * len(self._addresses):
            self._apart.clear()
        self._apart |= places
        return True


def make_private(
    chosen: Sequence[int], columns: Sequence[list[Any]], read: Sequence[Tensor]
) -> None:
    """Replaces tensors that are to be written and share their memory by copies.

    Args:
        chosen: the indices of the leaves that are stepped.
        columns: the leaves, and per name the moments; copies are put into them.
        read: other tensors that the step reads.
    """
    uses = Counter([id(t) for column in columns for t in column if t is not None])
    uses.update(map(id, read))
    unclear = any(map(_is_unknown, read))
    for column in columns:
        for k in chosen:
            t = column[k]
            if t is not None and (unclear or uses[id(t)] > 1 or not _is_alone(t)):
                column[k] = t.clone()


def memory_of(chosen: Sequence[int], columns: Sequence[list[Any]]) -> Memory | None:
    """The memory that a step wrote, or ``None`` if that is unknown.

    Args:
        chosen: the indices of the leaves that were stepped.
        columns: the leaves, and per name the moments.
    """
    written = [column[k] for column in columns for k in chosen if column[k] is not None]
    return None if any(map(_is_unknown, written)) else Memory(columns[0], chosen, written)


def _is_alone(tensor: Tensor) -> bool:
    """Whether a tensor is dense, in memory of torch that no other tensor uses."""
    if type(tensor) not in PLAIN:
        return not _is_unknown(tensor) and _is_alone(_local(tensor))
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    if tensor.is_inference() or tensor.is_conj() or tensor.is_neg():
        return False
    storage = tensor.untyped_storage()
    return (
        memory.is_whole(tensor)
        and (tensor.is_contiguous() or kernels.is_dense(tensor))
        and storage.resizable()  # if not it is of another library, or of a file
        and not (tensor.device.type == "cpu" and storage.is_shared())  # with other processes
        and memory.users_of(storage) == 1
    )


def _local(tensor: Any) -> Any:
    """The part of a distributed tensor that is in this process; another tensor as it is."""
    return tensor if type(tensor) in PLAIN else shards.local_of(tensor)


def _is_unknown(tensor: Any) -> bool:
    """Whether it is unknown which memory a tensor uses."""
    if type(tensor) in PLAIN:
        return bool(tensor.is_nested or tensor.layout is not torch.strided)
    return not shards.is_distributed(tensor) or _is_unknown(shards.local_of(tensor))
