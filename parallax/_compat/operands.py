"""Operands as torch's higher-order operators want them.

Such an operator traces a function once for operands like these. It refuses some that any other
operator takes, and is wrong, without a word, for some that it does not refuse.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["apart", "memory_of", "resolved", "told_apart", "unaliased"]


def resolved(value: Any) -> Any:
    """A tensor whose memory holds its numbers: not their conjugates, and not their negatives."""
    return value.resolve_conj().resolve_neg() if isinstance(value, Tensor) else value


def apart(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The tensors in memory of their own and laid out alike."""
    return tuple([resolved(x).clone(memory_format=torch.contiguous_format) for x in tensors])


def unaliased(values: Sequence[Any]) -> list[Any]:
    """The operands, none in memory of another."""
    seen: set[Any] = set()
    found = []
    for given in values:
        value = resolved(given)
        if isinstance(value, Tensor):
            memory = memory_of(value)
            value = value.clone() if memory in seen else value
            seen.add(memory)
        found.append(value)
    return found


def memory_of(x: Tensor) -> Any:
    """What is equal for tensors in the same memory, also where they stand for others in a trace."""
    inner = torch._from_functional_tensor(x.elem) if isinstance(x, FunctionalTensor) else x
    return StorageWeakRef(inner.untyped_storage())


def told_apart(values: Sequence[Any]) -> list[Any]:
    """The operands, none of which is the same tensor as another.

    One and the same tensor is one input of the graph that is traced, which is then wrong for a call
    whose operands are two tensors, and a graph of two inputs knows nothing of one that comes twice.
    """
    seen: set[int] = set()
    found = []
    for given in values:
        value = resolved(given)
        if isinstance(value, Tensor):
            value = value.view_as(value) if id(value) in seen else value
            seen.add(id(value))
        found.append(value)
    return found
