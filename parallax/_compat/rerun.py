"""A call that is made once more, only to see the error that it raises, and changes nothing."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["changing_nothing"]


@contextmanager
def changing_nothing(tensors: Iterable[Tensor], own: Iterable[Tensor] = ()) -> Iterator[None]:
    """Within it nothing is written but what was made in it; the block ends at any other write.

    Afterwards the random states of torch and Python are as they were.

    Args:
        tensors: the random states are those of their devices, and of the CPU.
        own: what may be written into.
    """
    state = random.getstate()
    with ExitStack() as stack:
        stack.callback(random.setstate, state)
        for kind, numbers in _devices(tensors).items():
            stack.enter_context(torch.random.fork_rng(numbers, device_type=kind))
        try:
            with _OwnOnly(own):
                yield
        except _Stopped:
            pass


def _devices(tensors: Iterable[Tensor]) -> dict[str, list[int]]:
    """The devices with random states of their own by kind, and the CPU."""
    found: dict[str, list[int]] = {"cuda": []}  # of which torch has the CPU's, too
    for device in {x.device for x in tensors}:
        alone = device.type not in ("cpu", "meta")
        if alone and hasattr(torch.get_device_module(device), "set_rng_state"):
            found.setdefault(device.type, []).append(device.index)
    return found


class _Stopped(BaseException):
    """Ends the call; no ``except Exception`` of the function's own is to take it."""


class _OwnOnly(TorchDispatchMode):
    """Lets operators write only into memory that one of them made."""

    def __init__(self, own: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self._own = {memory for x in own for memory in _memory(x)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given: set[StorageWeakRef] = set()
        for k, argument in enumerate(func._schema.arguments):
            value = args[k] if k < len(args) else kwargs.get(argument.name)
            memory = {m for x in tree_leaves(value) for m in _memory(x)}
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and not memory <= self._own:
                raise _Stopped
            given |= memory
        result = func(*args, **kwargs)
        made = {m for x in tree_leaves(result) for m in _memory(x)}
        # ``torch.tensor`` makes its result beside all operators, and hands it to this one.
        self._own |= made if func in _LIFTS else made - given
        return result


_LIFTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


def _memory(value: Any) -> list[StorageWeakRef]:
    """The memory of a tensor; none of what has none of its own, such as sparse tensors."""
    if not isinstance(value, Tensor):
        return []
    try:
        return [StorageWeakRef(value.untyped_storage())]
    except NotImplementedError:
        return []
