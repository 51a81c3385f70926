"""``torch.distributed.checkpoint`` without its warning that there is one process."""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["is_alone", "read", "write"]


def write(tensors: dict[str, Tensor], writer: Any, group: Any = None) -> None:
    """Writes tensors, all processes together.

    Args:
        tensors: those of this process by name.
        writer: a ``StorageWriter`` of torch's.
        group: the processes that communicate; by default the default group.

    Raises:
        CheckpointException: if one of the processes cannot write.
    """
    from torch.distributed.checkpoint import state_dict_saver

    # ``save`` is this and a warning. Warnings cannot be silenced in one thread alone.
    state_dict_saver._save_state_dict(tensors, writer, process_group=group, no_dist=is_alone())


def read(path: str, targets: dict[str, Tensor]) -> None:
    """Reads into tensors, all processes together.

    Raises:
        CheckpointException: if one of the processes cannot read.
    """
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    ordered = {name: targets[name] for name in sorted(targets)}
    state_dict_loader._load_state_dict(ordered, FileSystemReader(path), no_dist=is_alone())


def is_alone() -> bool:
    """Whether there is no group of processes."""
    return not (dist.is_available() and dist.is_initialized())
