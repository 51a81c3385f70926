"""Plain and distributed tensors that meet in a function: which of its arguments are which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from parallax._compat import shards
from parallax.tree import core

__all__ = ["note_mixed"]


def note_mixed(error: BaseException, args: Sequence[Any]) -> None:
    """Adds to torch's error of a mixture which arguments met, where no layer has said more.

    Args:
        error: what the function raised.
        args: the positional arguments.
    """
    if not shards.is_mixing(error) or getattr(error, "__notes__", None):
        return
    found: dict[bool, str] = {}
    for number, arg in enumerate(args):
        try:
            leaves = core.named_leaves(arg)
        except TypeError:  # a module of torch's, which is no tree
            continue
        for path, leaf in leaves.items():
            if isinstance(leaf, Tensor):
                where = f"{path} of argument {number}" if path else f"argument {number}"
                found.setdefault(shards.is_distributed(leaf), where)
    if len(found) == 2:
        error.add_note(
            f"{found[True]} is distributed, and {found[False]} is a plain tensor. Take batches "
            f"from plan.batches(loader), and place all leaves of a model with plan.apply(model)."
        )
