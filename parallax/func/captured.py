"""Tensors that a function reaches beside its arguments, and may write into.

``torch.func`` refuses such a write. On the tape it works; but where a value of the function is
written, the tensor would keep its graph, and the graph would grow with every call.
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any

from torch import Tensor, nn

from parallax.core.nodes import is_module
from parallax.func.graph import escaping
from parallax.func.held import held_by, names_of

__all__ = ["are_held", "take_graphs_off", "written_by"]

_MOST = 500  # objects that are looked at, the nearest first: half a millisecond
_ENDS = (type, types.ModuleType, nn.Module, str, bytes, int, float, complex, type(None))


def are_held(leaves: Sequence[Tensor]) -> bool:
    """Whether something beside this list holds one of the tensors, such as a graph.

    torch counts what holds a tensor in C++ as one reference of Python.
    """
    return any([sys.getrefcount(leaf) > _BY_ONE_LIST for leaf in leaves])


_BY_ONE_LIST = max([sys.getrefcount(item) for item in [object()]])


def written_by(function: Callable[..., Any]) -> list[Tensor]:
    """The tensors beside its arguments that a function may have written values with a graph into.

    A tensor that it made and put somewhere was not written into since.
    """
    return [t for t in _tensors_reached(function) if t.grad_fn is not None and t._version]


def take_graphs_off(tensors: Sequence[Tensor], own: Container[int], what: str) -> None:
    """Detaches tensors that a function wrote into, unless their graph leads outside.

    Args:
        tensors: what was written into.
        own: the ``id`` of each leaf that was made for this derivative alone.
        what: what is called, for error messages.

    Raises:
        RuntimeError: if one is a view, which cannot be detached.
    """
    for tensor, out in zip(tensors, escaping(tensors, own), strict=True):
        if tensor.requires_grad and not out:
            if tensor._base is not None:
                raise RuntimeError(
                    f"{what}: a tensor that is a view was written in place, and keeps the graph "
                    f"of what was written. Compute a new tensor instead: y = y + 1, not y += 1; "
                    f"or write y.detach() into it"
                )
            tensor.detach_()


def _tensors_reached(function: Callable[..., Any]) -> list[Tensor]:
    """The tensors in what a function closes over, is bound to, or names in its module.

    Looked through are functions, methods, containers and attributes; modules are immutable.
    """
    found: list[Tensor] = []
    queue: deque[Any] = deque([function])
    seen: set[int] = set()
    while queue and len(seen) < _MOST:
        item = queue.popleft()
        if id(item) in seen or isinstance(item, _ENDS) or is_module(item):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
            continue
        queue += held_by(item)
        if isinstance(item, types.FunctionType):
            queue += [space[name] for space, name in names_of(item)]
    return found
