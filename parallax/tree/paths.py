"""The leaves of a tree by their dotted paths."""

from __future__ import annotations

from typing import Any

import torch

from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.tree.arguments import refuse_torch_module
from parallax.tree.outside import item_paths, join, opened_outside

__all__ = ["items_with_paths", "named_leaves", "with_paths"]


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by dotted path, as ``named_parameters`` and ``named_buffers`` name them.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        Paths to leaves, holes left out; a tied leaf under its first path.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.named_leaves({"a": [torch.zeros(())]})
        {'a.0': tensor(0.)}
    """
    return {path: leaf for path, leaf in with_paths(tree) if leaf is not None}


def with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Every unique leaf or hole with its dotted path."""
    if is_module(tree):
        found, part = flatten_module(tree)
        return list(zip(part.paths, found, strict=True))
    pairs = []
    for prefix, item in items_with_paths(tree):
        inner = with_paths(item) if is_module(item) else [("", item)]
        pairs += [(join(prefix, path), leaf) for path, leaf in inner]
    return pairs


def items_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The outermost modules and leaves of a tree, each with its dotted path."""
    if is_module(tree):
        return [("", tree)]
    items, outer = opened_outside(tree)
    for item in items:
        if isinstance(item, torch.nn.Module):
            refuse_torch_module(item)
    return list(zip(item_paths(outer), items, strict=True))
