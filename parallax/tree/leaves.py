"""What a leaf is: inexact, a declaration, a key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from parallax._compat import in_trace
from parallax._compat.dynamo import is_compiling
from parallax.core.fields import Lazy
from parallax.tree.carriers import refuse_carrier

__all__ = ["all_floating", "is_array", "is_inexact"]


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is a tensor of real or complex floating numbers.

    Raises:
        TypeError: if it is none and hides tensors, such as a bound method of a module.
    """
    if isinstance(leaf, Tensor):
        return leaf.is_floating_point() or leaf.is_complex()
    if leaf is not None and not is_compiling():
        refuse_carrier(leaf)
    return False


def is_array(leaf: Any) -> bool:
    """Whether a leaf has a shape and a dtype: a tensor, or the declaration of one.

    Raises:
        TypeError: if it is none and hides tensors, such as a bound method of a module.
    """
    if isinstance(leaf, (Tensor, Lazy)):
        return True
    if leaf is not None and not is_compiling():
        refuse_carrier(leaf)
    return False


def all_floating(leaves: Iterable[Any]) -> bool:
    """Whether all leaves are tensors of real floating numbers: a quick look at the usual case."""
    if is_compiling():  # which catches no error of a method of C++
        found = list(leaves)
        in_trace.at_trace()(_look)
        del found
        return bool(in_trace.replied())
    try:
        return all(map(Tensor.is_floating_point, leaves))
    except TypeError:  # something is not a tensor
        return False


def _look(context: Any) -> None:
    """Answers ``all_floating``, at once: to trace the question to each leaf takes longer."""
    found = in_trace.items(context, "found")
    in_trace.reply(
        context, all([isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in found])
    )
