"""Batches of a loader, of which each process takes its part."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from parallax.distributed.agreement import agree
from parallax.tree import core

__all__ = ["batches"]


def batches(loader: Iterable[Any], mesh: DeviceMesh, cut_by: tuple[str, ...]) -> Iterator[Any]:
    """Each batch with its tensors cut along their first dimension; see ``Plan.batches``.

    Args:
        loader: the same in all processes.
        mesh: the processes.
        cut_by: the dimensions of the mesh that a batch is cut over.
    """
    for number, batch in enumerate(loader):
        if number == 0:
            agree("Plan.batches", lambda batch=batch: [_facts(batch)], mesh)  # type: ignore[misc]  # bound now
        yield core.map_with_path(lambda path, leaf: _cut(path, leaf, mesh, cut_by), batch)


def _facts(batch: Any) -> str:
    """What the first batch is."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in core.leaves(batch):
        if isinstance(leaf, Tensor):
            digest.update(repr((leaf.shape, leaf.dtype)).encode())
            held = leaf.detach().cpu().contiguous()
            if type(held) is Tensor:  # others may have no memory of their own
                digest.update(ctypes.string_at(held.data_ptr(), held.nbytes))
        else:
            digest.update(repr(leaf).encode())
    return f"the first batch is {digest.hexdigest()} (shuffle with one seed)"


def _cut(path: str, leaf: Any, mesh: DeviceMesh, cut_by: tuple[str, ...]) -> Any:
    """The part of one tensor, and what is no tensor as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    names: Any = mesh.mesh_dim_names
    count = 1
    for name in cut_by:
        count *= mesh[name].size()
    if leaf.ndim and leaf.shape[0] % count:
        raise ValueError(
            f"Plan.batches: {path or 'the batch'} has {leaf.shape[0]} rows, which do not divide "
            f"over {count} processes ({', '.join(cut_by)}). Choose a batch size that does, and "
            f"leave out what is left over: DataLoader(..., drop_last=True)"
        )
    placements = [Shard(0) if name in cut_by and leaf.ndim else Replicate() for name in names]
    return distribute_tensor(leaf, mesh, placements, src_data_rank=None)
