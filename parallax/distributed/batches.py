"""Batches of a loader, of which each process takes its part."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from parallax.distributed.agreement import agree
from parallax.tree import core

__all__ = ["batches"]

_REMEDIES = (
    "Choose a batch size that does: DataLoader(..., drop_last=True) leaves out what is left over",
    "Choose a length that does, or a plan without sequence=",
)


def batches(loader: Iterable[Any], mesh: DeviceMesh, cuts: Mapping[str, int]) -> Iterator[Any]:
    """Each batch with its tensors cut; see ``Plan.batches``.

    Args:
        loader: the same in all processes.
        mesh: the processes.
        cuts: for each dimension of the mesh that a batch is cut over, that of its tensors.
    """
    given = iter(loader)
    for number in itertools.count():
        taken = _next(given, number, loader, mesh)
        if not taken:
            return
        yield core.map_with_path(lambda path, leaf: _cut(path, leaf, mesh, cuts), taken[0])


def _next(given: Iterator[Any], number: int, loader: Any, mesh: DeviceMesh) -> list[Any]:
    """The next batch in a list, which is empty at the end; in all processes or in none.

    One that went on alone would wait for the others, and unequal parts would count alike in a mean.
    """
    taken: list[Any] = []

    def facts() -> list[str]:
        taken.extend(itertools.islice(given, 1))
        if not taken:
            return [f"the loader ends after {number} batches"]
        shapes = _shapes(number, taken[0])
        return shapes if number else [_length(loader), *shapes, _values(taken[0])]

    agree("Plan.batches", facts, mesh, "Give every process the same batches")
    return taken


def _length(loader: Any) -> str:
    """How many batches there will be."""
    try:
        return f"the loader has {len(loader)} batches"
    except (TypeError, NotImplementedError):  # of a stream
        return "the loader has no length"


def _values(batch: Any) -> str:
    """What a batch holds; on an accelerator that is waited for, so only of the first."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in core.leaves(batch):
        if isinstance(leaf, Tensor):
            held = leaf.detach().cpu().contiguous()
            if type(held) is Tensor:  # others may have no memory of their own
                digest.update(ctypes.string_at(held.data_ptr(), held.nbytes))
        else:
            digest.update(repr(leaf).encode())
    return f"the first batch is {digest.hexdigest()} (shuffle with one seed)"


def _shapes(number: int, batch: Any) -> list[str]:
    """What the tensors of a batch are."""
    return [
        f"batch {number} has {path or 'a tensor'} of {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in core.named_leaves(batch).items()
        if isinstance(leaf, Tensor)
    ]


def _cut(path: str, leaf: Any, mesh: DeviceMesh, cuts: Mapping[str, int]) -> Any:
    """The part of one tensor, and what is no tensor as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    here = {name: dim for name, dim in cuts.items() if dim < leaf.ndim}
    for dim in dict.fromkeys(here.values()):
        over = [name for name in here if here[name] == dim]
        count = math.prod([mesh[name].size() for name in over])
        if leaf.shape[dim] % count:
            where = f"{path} of the batch" if path else "the batch"
            what = f"entries in dimension {dim}" if dim else "rows"
            raise ValueError(
                f"Plan.batches: {where} has {leaf.shape[dim]} {what}, which do not divide "
                f"over {count} processes ({', '.join(over)}). {_REMEDIES[dim > 0]}"
            )
    names: Any = mesh.mesh_dim_names
    placements = [Shard(here[name]) if name in here else Replicate() for name in names]
    return distribute_tensor(leaf, mesh, placements, src_data_rank=None)
