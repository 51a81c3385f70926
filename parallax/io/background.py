"""Saving while the program goes on: in a thread, one checkpoint after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallax._compat import directories

__all__ = ["copied", "finished", "group", "start"]

_threads = [ThreadPoolExecutor(1, "parallax.io.save")]
_under_way: list[Future[None]] = []  # the last one; those before it are done first
_groups: dict[Any, Any] = {}


def _begin_anew() -> None:
    """In a forked process: its parent's thread is not there, and writes in the parent."""
    _threads[:] = [ThreadPoolExecutor(1, "parallax.io.save")]
    _under_way.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def start(save: Callable[[], None]) -> Future[None]:
    """Calls a function in the thread, after those that were given before."""
    _under_way[:] = [_threads[0].submit(save)]
    return _under_way[0]


def finished() -> None:
    """Waits for what was given before; how it went, its own future says."""
    wait(_under_way)


def group() -> Any:
    """A group of all processes for the thread; ``None`` where this process is alone.

    What a program does in the default group meanwhile would be taken for messages of a checkpoint.
    Every process calls it.
    """
    if directories.is_alone():
        return None
    world = dist.group.WORLD
    if world not in _groups:
        _groups.clear()
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, which stay as they are whatever the program does; ties stay ties."""
    made: dict[int, Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        if id(tensor) not in made:
            made[id(tensor)] = tensor.detach().to("cpu", copy=True)
        found[name] = made[id(tensor)]
    return found
