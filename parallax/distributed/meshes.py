"""Meshes: how the processes are arranged, and what a mesh without processes is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from parallax._errors.arguments import shown
from parallax.distributed.agreement import agree

__all__ = ["Sizes", "cutting", "mesh", "sizes_of"]

Sizes = Mapping[str, int]


def mesh(*, device_type: str | None = None, **sizes: int) -> DeviceMesh | Sizes:
    """The processes of the default group as a mesh with named dimensions.

    All of them call it, with the same sizes. The last dimension varies fastest: its processes are
    neighbours, so give it what communicates most. A dimension of size 1 changes nothing.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...; by default the accelerator, or the CPU if there is
            none or the group's backend is gloo.
        **sizes: the size of each dimension by its name; their product is the number of processes.

    Returns:
        What ``torch.distributed.device_mesh.init_device_mesh`` returns. In one process without a
        group all sizes are 1, and the sizes alone are returned: a plan on them leaves every leaf
        as it is.

    Raises:
        RuntimeError: if a size is larger than 1 and there is no process group.
        TypeError: if a size is no int, or the type of device no string.
        ValueError: if the product of the sizes is not the number of processes, or the processes
            give different sizes.

    Example:
        >>> from parallax import distributed as dist
        >>> dist.mesh(dp=1, tp=1)
        {'dp': 1, 'tp': 1}
    """
    _check_sizes("dist.mesh", sizes)
    if device_type is not None:
        _check_device_type(device_type)
    call = f"dist.mesh({', '.join(f'{name}={size}' for name, size in sizes.items())})"
    count = math.prod(sizes.values())
    if not (dist.is_available() and dist.is_initialized()):
        if count == 1:
            return dict(sizes)
        raise RuntimeError(
            f"{call}: there is no process group. Start {count} processes with torchrun "
            f"--nproc-per-node {count}, and call torch.distributed.init_process_group() first. "
            f"To describe a plan without processes, give it sizes: dist.Plan({dict(sizes)}, ...)"
        )
    agree("dist.mesh", lambda: [f"the call is {call}"], None)
    if count != dist.get_world_size():
        raise ValueError(
            f"{call} is for {count} process(es), and the process group has "
            f"{dist.get_world_size()}. Start {count} with torchrun --nproc-per-node {count}, or "
            f"give sizes whose product is {dist.get_world_size()}"
        )
    return init_device_mesh(
        device_type or _device_type(), tuple(sizes.values()), mesh_dim_names=tuple(sizes)
    )


def _check_device_type(given: Any) -> None:
    known = isinstance(given, str)
    if known:
        try:
            known = torch.device(given).type == given
        except RuntimeError:
            known = False
    if not known:
        raise TypeError(
            f"dist.mesh(device_type=): expected the name of a type of device, got {shown(given)}. "
            f"Write device_type='cuda'"
        )


def _device_type() -> str:
    """The device that the default group is for: the accelerator, unless gloo serves it."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return "cpu"
    pairs = [pair.split(":") for pair in str(dist.get_backend_config()).split(",")]
    return "cpu" if [accelerator.type, "gloo"] in pairs else accelerator.type


def _check_sizes(what: str, sizes: Mapping[Any, Any]) -> None:
    right = "dist.mesh(dp=2, tp=2)" if what == "dist.mesh" else "dist.Plan({'dp': 2, 'tp': 2}, ...)"
    if not sizes:
        raise TypeError(f"{what}: give each dimension a name and a size. Write {right}")
    for name, size in sizes.items():
        if not isinstance(name, str) or type(size) is not int:
            raise TypeError(
                f"{what}({name}=): the size of a dimension is an int, got {shown(size)}. "
                f"Write {right}"
            )
        if size < 1:
            raise ValueError(f"{what}({name}={size}): a size is at least 1. Write {right}")


def sizes_of(mesh: Any) -> dict[str, int]:
    """The size of each dimension of a mesh, or of what stands for one.

    Raises:
        TypeError: if it is neither a mesh nor sizes, or its dimensions have no names.
        ValueError: if a size is less than 1.
    """
    if isinstance(mesh, Mapping):
        _check_sizes("dist.Plan", mesh)
        return dict(mesh)
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(
            f"dist.Plan(mesh, ...): expected a mesh, or sizes by name, got {shown(mesh)}. "
            f"Write dist.Plan(dist.mesh(dp=2, tp=2), ...)"
        )
    if mesh.mesh_dim_names is None:
        raise TypeError(
            f"dist.Plan(mesh, ...): the dimensions of this {mesh} have no names, and rules go by "
            f"name. Write dist.mesh(dp=2, tp=2), or "
            f"init_device_mesh(..., mesh_dim_names=('dp', 'tp'))"
        )
    shape = [mesh.size(dim) for dim in range(mesh.ndim)]
    return dict(zip(mesh.mesh_dim_names, shape, strict=True))


def cutting(mesh: DeviceMesh) -> DeviceMesh | None:
    """The mesh without its dimensions of size 1; ``None`` if there are no others."""
    names = tuple([name for name, size in sizes_of(mesh).items() if size > 1])
    if not names:
        return None
    return mesh if len(names) == mesh.ndim else mesh[names]
