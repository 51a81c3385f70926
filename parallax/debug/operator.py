"""Operators that return nothing and may raise: checks that stay where they are in compiled code.

A tensor's numbers are not known while code is traced, nor within ``vmap``. An operator is called
when they are, with the tensor of all members; and what is raised in it reaches the user as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from parallax._compat import dynamo, functorch, modes

__all__ = ["checking", "numbers_are_hidden"]


def checking(schema: str, run: Callable[..., None], mapped: Callable[..., tuple[Any, ...]]) -> Any:
    """An operator that calls a function for what it raises.

    Args:
        schema: of the operator, without a result.
        run: takes tensors that have numbers, and other arguments.
        mapped: within ``vmap`` takes the mapped dimension of each argument, ``None`` for none, and
            the arguments; to those for all members at once.
    """
    name = run.__name__.strip("_")
    op = torch.library.custom_op(f"parallax::{name}", run, mutates_args=(), schema=schema)
    op.register_fake(lambda *_: None)
    call: Any = getattr(torch.ops.parallax, name)

    def rule(info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[None, None]:
        call(*mapped(dims, *args))
        return None, None

    op.register_vmap(rule)
    torch.fx.has_side_effect(call.default)  # else graphs leave out what nobody reads
    return call


def numbers_are_hidden() -> bool:
    """Whether the numbers of a tensor cannot be read here, but in an operator."""
    return dynamo.is_compiling() or functorch.transform_active() or modes.dispatch_mode_active()
