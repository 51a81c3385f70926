"""Whether autograd's graph of a tensor reaches leaves that were made elsewhere.

Leaves made for a derivative that is finished are *retired*. A graph that is kept for other tensors
may still contain them, and no code can differentiate by them any more.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from torch import Tensor

from parallax._compat import checkpoints
from parallax._compat.autograd import AccumulateGrad

__all__ = ["escaping", "made_since", "outside", "retire"]

_RETIRED = "_parallax_retired"


def retire(leaves: Sequence[Tensor]) -> None:
    """Marks the leaves of a finished derivative."""
    for leaf in leaves:
        setattr(leaf, _RETIRED, True)


def outside(tensors: Sequence[Tensor], own: Container[int], nodes: list[Any]) -> tuple[bool, bool]:
    """Whether the graph of any tensor reaches a leaf that is not one of ``own``.

    Args:
        tensors: where to start from.
        own: the ``id`` of each leaf that was made for this derivative alone.
        nodes: an empty list, for the nodes of the graph that the walk met.

    Returns:
        Whether it reaches a leaf that was made elsewhere; the walk ends as soon as one is found.
        And whether it reaches any other leaf, retired ones included.
    """
    others = False
    for tensor in tensors:
        if tensor.grad_fn is not None:
            nodes.append(tensor.grad_fn)
        elif tensor.requires_grad and id(tensor) not in own:
            others = True
            if _is_foreign(tensor, own):
                return True, True
    # This walk is what func.grad does beyond backward(): 0.5 us for each node, nearly all of it
    # in next_functions, which makes a Python object of each node below.
    seen: set[Any] = {None, *nodes}
    for node in nodes:  # the list grows
        for below, _ in node.next_functions:
            if type(below) is AccumulateGrad:
                if id(below.variable) not in own:  # type: ignore[attr-defined]  # made in C++
                    others = True
                    if _is_foreign(below.variable, own):  # type: ignore[attr-defined]  # as above
                        return True, True
            elif below not in seen:
                seen.add(below)
                nodes.append(below)
    return False, others


def made_since(tensors: Sequence[Tensor], since: int) -> set[Any]:
    """The nodes of the graph of these tensors from the one with this number on.

    Raises:
        RuntimeError: if one is a reentrant checkpoint, whose parameters autograd does not see; the
            message says what to write.
    """
    starts: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    stack = [node for node in starts if node._sequence_nr() >= since]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if type(node) is checkpoints.REENTRANT:
            raise RuntimeError(checkpoints.NO_REENTRANT)
        for below, _ in node.next_functions:
            if below is not None and below not in seen and below._sequence_nr() >= since:
                seen.add(below)
                stack.append(below)
    return seen


def escaping(tensors: Sequence[Tensor], own: Container[int]) -> list[bool]:
    """As ``outside`` for each tensor on its own, in one walk over what they share."""
    users: dict[Any, list[Any]] = {t.grad_fn: [] for t in tensors if t.grad_fn is not None}
    stack, reached = list(users), []
    while stack:
        node = stack.pop()
        if type(node) is AccumulateGrad and _is_foreign(node.variable, own):  # type: ignore[attr-defined]  # made in C++
            reached.append(node)
        for below, _ in node.next_functions:
            if below in users:
                users[below].append(node)
            elif below is not None:
                users[below] = [node]
                stack.append(below)
    found = set(reached)
    while reached:
        for node in users[reached.pop()]:
            if node not in found:
                found.add(node)
                reached.append(node)
    return [
        t.grad_fn in found if t.grad_fn is not None else t.requires_grad and _is_foreign(t, own)
        for t in tensors
    ]


def _is_foreign(leaf: Tensor, own: Container[int]) -> bool:
    if id(leaf) in own or hasattr(leaf, _RETIRED):
        return False
    # A view of a leaf that was taken under no_grad says that it requires grad, and has no graph.
    return leaf._base is None or _is_foreign(leaf._base, own)
