"""Whether autograd's graph of a tensor leads to tensors that somebody else holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["escapes", "escaping"]


def escapes(tensors: Sequence[Tensor], own: set[int]) -> bool:
    """Whether the graph of any tensor reaches a leaf that is not one of ``own``.

    Args:
        tensors: where to start from.
        own: the ``id`` of each leaf that was made for this derivative alone.

    Returns:
        True as soon as one such leaf is found.
    """
    stack: list[Any] = []
    for tensor in tensors:
        node = tensor.grad_fn
        if node is not None:
            stack.append(node)
        elif tensor.requires_grad and id(tensor) not in own:
            return True
    seen = set(stack)
    while stack:
        node = stack.pop()
        edges = node.next_functions
        if not edges and _is_foreign(node, own):
            return True
        for below, _ in edges:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return False


def escaping(tensors: Sequence[Tensor], own: set[int]) -> list[bool]:
    """As ``escapes`` for each tensor on its own, in one walk over what they share."""
    users: dict[Any, list[Any]] = {t.grad_fn: [] for t in tensors if t.grad_fn is not None}
    stack, reached = list(users), []
    while stack:
        node = stack.pop()
        edges = node.next_functions
        if not edges and _is_foreign(node, own):
            reached.append(node)
        for below, _ in edges:
            if below in users:
                users[below].append(node)
            elif below is not None:
                users[below] = [node]
                stack.append(below)
    outside = set(reached)
    while reached:
        for node in users[reached.pop()]:
            if node not in outside:
                outside.add(node)
                reached.append(node)
    return [
        t.grad_fn in outside if t.grad_fn is not None else t.requires_grad and id(t) not in own
        for t in tensors
    ]


def _is_foreign(node: Any, own: set[int]) -> bool:
    # Only the node that accumulates into a leaf has a variable; other ends of a graph are
    # functions without a differentiable input.
    variable = getattr(node, "variable", None)
    return variable is not None and id(variable) not in own
