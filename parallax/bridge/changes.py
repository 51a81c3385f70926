"""Changes of the modules of a lowered tree that a call of the tree would ignore.

A call of what ``bridge.lower`` made runs the tree around the tensors that its modules hold. Those
are not called, so what is put on them or in their place has no effect, and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = ["Look", "look_of", "refuse_changes", "refuse_conversion"]

Look = tuple[type, tuple[int, ...]]
_HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def look_of(node: nn.Module) -> Look:
    """The class of a module, and how many hooks it has."""
    return type(node), tuple([len(getattr(node, table)) for table in _HOOKS])


def refuse_changes(
    root: str, nodes: Sequence[nn.Module], names: Sequence[str], made: Sequence[Look]
) -> None:
    """Raises if modules are not as they were made.

    Args:
        root: what the whole is called.
        nodes: the modules below it.
        names: of each, where it is held.
        made: how each looked.

    Raises:
        RuntimeError: if one was replaced, or has another hook or forward.
    """
    for node, name, look in zip(nodes, names, made, strict=True):
        if not isinstance(node, look[0]):
            what = f"is a {type(node).__name__} now"
        elif "forward" in node.__dict__:
            what = "has a forward of its own"
        else:
            counts = [len(getattr(node, table)) for table in _HOOKS]
            more = [k for k, count in enumerate(counts) if count > look[1][k]]
            if not more:
                continue
            what = f"has {list(_HOOKS.values())[more[0]]}"
        raise RuntimeError(
            f"{root}: the module {name!r} {what}, and a call of what bridge.lower made would "
            f"ignore it: such a call runs the tree and does not call the modules in it. Take it "
            f"off, or put it on the whole; wrap or replace parts in the tree before it is lowered; "
            f"effects.capture returns what is in between"
        )


def refuse_conversion(root: str, name: str, module: Any) -> None:
    """Raises where torch puts back a norm that it should have converted, and did not know.

    Raises:
        TypeError: if a module that is put back holds running statistics.
    """
    if any("running_mean" in part._buffers for part in module.modules()):
        raise TypeError(
            f"{root}.{name} is no torch.nn.BatchNorm, so torch cannot convert it to SyncBatchNorm. "
            f"Replace the layer in the tree; or lower bridge.lift(model) of a torch.nn model"
        )
