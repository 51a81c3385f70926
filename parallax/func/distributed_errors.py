"""Errors of torch about distributed tensors in a function, and what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from parallax._compat import shards
from parallax.tree import core

__all__ = ["note_distributed"]


def note_distributed(error: BaseException, args: Sequence[Any]) -> None:
    """Adds to an error of torch what to write, where no layer has said more.

    Of plain and distributed tensors that met it says which arguments they are.

    Args:
        error: what the function raised.
        args: the positional arguments.
    """
    shards.note_missing_rule(error)
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
