"""Lazy modules, which learn the shapes of their parameters from their first input."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, is_lazy

__all__ = ["materialized"]


def materialized(module: nn.Module, sample: Any) -> nn.Module:
    """A module whose lazy parts have seen an input.

    Args:
        module: it stays as it is.
        sample: the input; a tuple is its positional arguments.

    Returns:
        The module itself if nothing in it is lazy; otherwise another one, which shares all tensors
        but those that were made.
    """
    buffers = dict(module.named_buffers())
    if not any([is_lazy(tensor) for tensor in (*module.parameters(), *buffers.values())]):
        return module
    # Parameters are shared; buffers are not, for the call may write into them.
    tensors: list[Any] = list(module.parameters())
    memo: dict[int, Any] = {id(p): p for p in tensors if not is_lazy(p)}
    for buffer in buffers.values():
        if is_lazy(buffer):  # which torch refuses to copy
            empty: Any = UninitializedBuffer  # whose arguments torch's types do not know
            memo[id(buffer)] = empty(device=buffer.device, dtype=buffer.dtype)
    twin = copy.deepcopy(module, memo)
    modes = [(part, part.training) for part in twin.modules()]
    args = sample if isinstance(sample, tuple) else (sample,)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.no_grad(), torch.random.fork_rng(devices):
        twin.eval()(*args)
    for part, mode in modes:
        part.training = mode
    for name, buffer in buffers.items():
        if not is_lazy(buffer):
            path, _, own = name.rpartition(".")
            twin.get_submodule(path)._buffers[own] = buffer
    return twin
