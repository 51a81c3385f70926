"""Batches of a loader, of which each process takes its part."""

from __future__ import annotations

import ctypes
import functools
import hashlib
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
    for number, batch in enumerate(loader):
        if number == 0:
            facts = functools.partial(_facts, loader, batch)
            agree("Plan.batches", facts, mesh)
        yield core.map_with_path(lambda path, leaf: _cut(path, leaf, mesh, cuts), batch)


def _length(loader: Any) -> str:
    """How many batches there will be: the processes with more would wait for the others."""
    try:
        return f"the loader has {len(loader)} batches"
    except (TypeError, NotImplementedError):  # of a stream
        return "the loader has no length"


def _facts(loader: Any, batch: Any) -> list[str]:
    """How many batches there will be, and what the first is."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in core.leaves(batch):
        if isinstance(leaf, Tensor):
            digest.update(repr((leaf.shape, leaf.dtype)).encode())
            held = leaf.detach().cpu().contiguous()
            if type(held) is Tensor:  # others may have no memory of their own
                digest.update(ctypes.string_at(held.data_ptr(), held.nbytes))
        else:
            digest.update(repr(leaf).encode())
    return [_length(loader), f"the first batch is {digest.hexdigest()} (shuffle with one seed)"]


def _cut(path: str, leaf: Any, mesh: DeviceMesh, cuts: Mapping[str, int]) -> Any:
    """The part of one tensor, and what is no tensor as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    here = {name: dim for name, dim in cuts.items() if dim < leaf.ndim}
    for dim in dict.fromkeys(here.values()):
        over = [name for name in here if here[name] == dim]
        count = math.prod([mesh[name].size() for name in over])
        if leaf.shape[dim] % count:
            what = f"entries in dimension {dim}" if dim else "rows"
            raise ValueError(
                f"Plan.batches: {path or 'the batch'} has {leaf.shape[dim]} {what}, which do not "
                f"divide over {count} processes ({', '.join(over)}). {_REMEDIES[dim > 0]}"
            )
    names: Any = mesh.mesh_dim_names
    placements = [Shard(here[name]) if name in here else Replicate() for name in names]
    return distribute_tensor(leaf, mesh, placements, src_data_rank=None)
