"""Meshes of several ranks in one process, and runs of several processes."""

from __future__ import annotations

import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def ranks(*sizes: int, names: tuple[str, ...] | None = None) -> Iterator[Any]:
    """A mesh of these sizes whose ranks this process plays all at once."""
    count = math.prod(sizes)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        with LocalTensorMode(count):
            yield init_device_mesh("cpu", sizes, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


@contextmanager
def alone(*sizes: int, rank: int = 0, names: tuple[str, ...] | None = None) -> Iterator[Any]:
    """A mesh of which this process is one rank: code on its distributed tensors compiles.

    The numbers are right if it is the only rank; otherwise nothing comes from the others.
    """
    shape = sizes or (1,)
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=rank, world_size=math.prod(shape))
    try:
        yield init_device_mesh("cpu", shape, mesh_dim_names=names)
    finally:
        dist.destroy_process_group()


def spread(tensor: Tensor, mesh: Any, *placements: Placement) -> Any:
    """A tensor cut over a mesh; the tensor itself stays as it is."""
    return distribute_tensor(tensor.detach().clone(), mesh, placements, src_data_rank=None)


def whole(value: Any) -> Tensor:
    """A distributed tensor put together, which must be the same on every rank."""
    found = value.full_tensor() if isinstance(value, DTensor) else value
    found = found.detach()
    return found.reconcile() if isinstance(found, LocalTensor) else found


_ROOMS = [f"parallax.{room}" for room in ("distributed", "func", "io", "nn", "optim")]

# What imports for seconds, and most files of tests need it in the end.
_OTHERS = ["pytest", "torch._functorch.aot_autograd", "torch.distributed.checkpoint"]


def run(work: Callable[[int, str], None], folder: Path, processes: int) -> None:
    """Calls ``work(rank, folder)`` in processes that form a gloo group; none waits for ever."""
    # Forks of this process could wait for threads that it has started. Those of a server that has
    # done nothing but import do not, and start as fast.
    method = "spawn" if sys.platform == "win32" else "forkserver"
    multiprocessing.set_forkserver_preload([*_ROOMS, *_OTHERS, __name__])
    mp.start_processes(  # type: ignore[attr-defined, no-untyped-call]  # torch does not say
        _join, args=(work, str(folder), processes), nprocs=processes, start_method=method
    )


def _join(rank: int, work: Callable[[int, str], None], folder: str, processes: int) -> None:
    meeting = f"file://{folder}/meeting"  # a port could be taken by the time it is used
    limit = timedelta(seconds=60)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", meeting, timeout=limit, rank=rank, world_size=processes)
    try:
        work(rank, folder)
        dist.barrier()  # none leaves while another is still at work
    finally:
        dist.destroy_process_group()
