"""What a check looks at: the arguments of a call by their paths, and the leaves of trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from parallax.core.nodes import is_module
from parallax.tree import core

__all__ = ["arguments", "leaves_of", "name_of", "tensors_in"]


def arguments(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All that a call is given by name; a module that is called, or whose method is, as well."""
    owner = fn if is_module(fn) else getattr(fn, "__self__", None)
    itself = {"self": owner} if is_module(owner) else {}
    return itself | {f"args[{k}]": value for k, value in enumerate(args)} | kwargs


def leaves_of(value: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree by their paths; a tensor alone is at an empty one."""
    if isinstance(value, Tensor):
        return [("", value)]
    return list(core.named_leaves(value).items())


def tensors_in(value: Any) -> list[tuple[str, Tensor]]:
    """The tensors among the leaves of a tree, by their paths."""
    return [(p, leaf) for p, leaf in core.named_leaves(value).items() if isinstance(leaf, Tensor)]


def name_of(fn: Callable[..., Any]) -> str:
    """What messages call a function."""
    return str(getattr(fn, "__name__", type(fn).__name__))
