"""What a process holds of a leaf: its share of what is drawn, and of what exists."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from parallax.distributed.placements import Placed
from parallax.random.shares import Share

__all__ = ["share", "spread"]


def share(placed: Placed, mesh: DeviceMesh) -> Share:
    """The share of this process, in a mesh of the dimensions that cut the leaf."""
    here: Any = mesh.get_coordinate()
    local = placed.local_shape
    starts = [0] * len(local)
    for coordinate, dim in zip(here, placed.cuts.values(), strict=True):
        if dim is not None:
            starts[dim] = coordinate * local[dim]
    whole = torch.empty(placed.shape, device="meta")

    def place(part: Tensor) -> Tensor:
        return DTensor.from_local(
            part, mesh, _placements(placed), run_check=False,
            shape=whole.shape, stride=whole.stride(),
        )  # fmt: skip

    return Share(tuple(starts), local, place, partial(spread, placed=placed, mesh=mesh))


def spread(leaf: Tensor, placed: Placed, mesh: DeviceMesh) -> Tensor:
    """A leaf that exists in parts; one that is plain has the values of the first process."""
    found: Any = leaf.detach()
    if isinstance(found, DTensor) and found.device_mesh == mesh:
        return found.redistribute(mesh, _placements(placed)).requires_grad_(leaf.requires_grad)
    if isinstance(found, DTensor):
        found = found.full_tensor()
    # A copy: torch writes what it receives into the memory that it is given.
    found = found.clone(memory_format=torch.contiguous_format)
    made = distribute_tensor(found, mesh, _placements(placed))
    return made.requires_grad_(leaf.requires_grad)


def _placements(placed: Placed) -> tuple[Placement, ...]:
    return tuple([Replicate() if dim is None else Shard(dim) for dim in placed.cuts.values()])
