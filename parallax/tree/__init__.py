"""Operations on trees: modules, and any pytree that holds them.

Each is: take the leaves, do something to them, build the tree again.
"""

from parallax.display import summary
from parallax.tree.core import (
    TreeSpec,
    flatten,
    leaves,
    map,
    map_with_path,
    named_leaves,
    structure,
    unflatten,
    update,
)

__all__ = [
    "TreeSpec",
    "flatten",
    "leaves",
    "map",
    "map_with_path",
    "named_leaves",
    "structure",
    "summary",
    "unflatten",
    "update",
]
