"""Whether all processes were told the same: differences are found before they become a hang."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agree"]


def agree(
    what: str,
    lines: Callable[[], Sequence[str]],
    mesh: Any,
    remedy: str = "Give every process the same plan, tree and seed",
) -> None:
    """Raises in every process if they differ, or if one of them raises.

    Every process of the mesh calls it. They exchange sixteen bytes each, and the lines themselves
    only where those differ.

    Args:
        what: the function of which the user made this call, for the error.
        lines: says what must be alike, a line per fact. Its own error is raised in this process;
            the others are told.
        mesh: the processes; ``None`` for those of the default group.
        remedy: what to do about a difference, for the error.

    Raises:
        ValueError: if the processes differ, naming the first difference.
    """
    if dist.get_backend() == "fake":  # its other processes do not exist
        lines()
        return
    failure: Exception | None = None
    try:
        mine = list(lines())
    except Exception as error:  # raised below, when the others know
        failure, mine = error, [f"it raised {type(error).__name__}: {error}"]
    groups = [None] if mesh is None else mesh.get_all_groups()
    if _same(mine, groups):
        if failure is not None:
            raise failure
        return
    told = _gathered(mine, groups)
    if failure is not None:
        raise failure
    rank, other = next((rank, theirs) for rank, theirs in enumerate(told) if theirs != told[0])
    pairs = zip_longest(told[0], other, fillvalue="it ends there")
    first, second = next((one, two) for one, two in pairs if one != two)
    raise ValueError(
        f"{what}: the processes differ. In process 0 of {len(told)} {first}; in process {rank} "
        f"{second}. {remedy}"
    )


def _same(lines: Sequence[str], groups: Sequence[Any]) -> bool:
    """Whether the lines are alike in all processes: the same answer in each."""
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=16).digest()
    found = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    accelerator = torch.accelerator.current_accelerator()
    for group in groups:
        if accelerator is not None and dist.get_backend(group) == "nccl":
            found = found.to(accelerator)
        found = torch.cat(_all_gathered(found, group))
    rows = found.cpu().view(-1, 16)
    return bool((rows == rows[0]).all())


def _all_gathered(value: Tensor, group: Any) -> list[Tensor]:
    found = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, value, group=group)
    return found


def _gathered(lines: list[str], groups: Sequence[Any]) -> list[list[str]]:
    """The lines of all processes, in the order of the mesh."""
    told: list[list[str]] = [lines]
    for group in reversed(groups):
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, told, group=group)
        told = [one for part in parts for one in part]
    return told
