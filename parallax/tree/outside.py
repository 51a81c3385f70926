"""What stands around the modules of a pytree: dicts, lists and other containers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optree
import torch
from torch import Tensor

from parallax._compat import dynamo, registries
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.tree.align import misfit

__all__ = ["adopt", "is_leaf", "join", "up_to"]

_PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, Tensor, torch.nn.Parameter,
})  # fmt: skip


def adopt(items: Iterable[Any]) -> bool:
    """Makes the classes of leaves nodes that torch's pytree takes apart, and optree does not yet.

    So a TensorDict, or the output of a transformers model, is a tree here as it is for
    ``torch.func``. Only Parallax's own traversals see it.

    Returns:
        Whether any is a node now.
    """
    kinds = {type(item) for item in items} - _PLAIN
    return bool(kinds) and any([_adopt(cls) for cls in kinds if not hasattr(cls, "__layout__")])


@dynamo.constant_in_traces
def _adopt(cls: type) -> bool:
    return registries.adopt_torch_node(cls, NAMESPACE)


def up_to(outer: Any, tree: Any, other: Any) -> list[Any]:
    """What ``other`` has in the place of each outermost module and leaf of ``tree``.

    Args:
        outer: optree's spec of what stands around the modules of ``tree``.
        tree: a pytree that holds modules.
        other: a pytree that should have its containers.

    Raises:
        ValueError: if it has others; the message names the first path.
    """
    try:
        return outer.flatten_up_to(other)  # type: ignore[no-any-return]  # a list of subtrees
    except ValueError:
        raise ValueError(_outer_misfit(tree, other)) from None


def is_leaf(item: Any) -> bool:
    """Whether there is nothing to take apart here."""
    leaf = bool(optree.tree_is_leaf(item, none_is_leaf=True, namespace=NAMESPACE))
    return leaf and not adopt((item,))


def _outer_misfit(tree: Any, other: Any) -> str:
    """Says where two pytrees first differ outside of modules."""
    stack = [("", tree, other)]
    while stack:
        path, a, b = stack.pop()
        if is_module(a) or is_leaf(a):
            continue
        if type(a) is not type(b):
            return misfit(path, f"a {type(a).__name__}", f"a {type(b).__name__}")
        ours, theirs = (
            optree.tree_flatten_one_level(t, none_is_leaf=True, namespace=NAMESPACE) for t in (a, b)
        )
        if ours[1] != theirs[1] or ours[2] != theirs[2]:
            kind = type(a).__name__
            return misfit(path, f"a {kind} of {list(ours[2])}", f"a {kind} of {list(theirs[2])}")
        below = zip(ours[2], ours[0], theirs[0], strict=True)
        stack += reversed([(join(path, str(key)), c, d) for key, c, d in below])
    return misfit("", f"a {type(tree).__name__}", f"a {type(other).__name__}")


def join(prefix: str, path: str) -> str:
    """A dotted path below another; either may be empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path
