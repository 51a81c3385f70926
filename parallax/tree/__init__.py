"""Operations on trees: modules, and any pytree that holds them.

Each takes the leaves of a tree, computes with them, and builds a tree of the same structure.
"""

from typing import TYPE_CHECKING, Any

from parallax._errors.absent import answer_calls
from parallax.tree.arithmetic import add, lerp, norm, scale, sub, vdot
from parallax.tree.batch import stack, unstack
from parallax.tree.compare import allclose, equal
from parallax.tree.convert import nbytes, size, to, zeros_like
from parallax.tree.core import (
    TreeSpec,
    flatten,
    leaves,
    map,  # noqa: A004  # named as in every tree library
    map_with_path,
    named_leaves,
    structure,
    unflatten,
)
from parallax.tree.diff import diff
from parallax.tree.flat import ravel
from parallax.tree.masks import masks
from parallax.tree.parts import combine, partition
from parallax.tree.recording import update
from parallax.tree.select import select
from parallax.tree.selection import Selection
from parallax.tree.summary import summary
from parallax.tree.ties import tie

__all__ = [
    "Selection",
    "TreeSpec",
    "add",
    "allclose",
    "combine",
    "diff",
    "equal",
    "flatten",
    "leaves",
    "lerp",
    "map",
    "map_with_path",
    "masks",
    "named_leaves",
    "nbytes",
    "norm",
    "partition",
    "ravel",
    "scale",
    "select",
    "size",
    "stack",
    "structure",
    "sub",
    "summary",
    "tie",
    "to",
    "unflatten",
    "unstack",
    "update",
    "vdot",
    "zeros_like",
]


if not TYPE_CHECKING:  # checkers would accept every name otherwise

    def __getattr__(name: str) -> Any:
        from parallax._errors.absent import no_such_name

        raise no_such_name(__name__, name)


def __dir__() -> list[str]:
    return sorted(__all__)


answer_calls(__name__, globals())
