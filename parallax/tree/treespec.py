"""``TreeSpec``: the structure of a tree, of which another tree is built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from parallax.core.registry import unflatten_module
from parallax.core.structure import Structure
from parallax.tree.outside import close, item_paths, join

__all__ = ["LONE", "TreeSpec", "expand_of"]


class TreeSpec:
    """The structure of a tree: a module, or any pytree whose leaves may be modules.

    ``structure`` and ``flatten`` make it. It is hashable. Two are equal when classes, constants,
    containers, ties, modes and frozen marks are equal.

    Example:
        >>> from parallax import nn, tree
        >>> one, two = nn.Linear(2, 1).initialize(0), nn.Linear(2, 1).initialize(1)
        >>> tree.structure(one) == tree.structure(two), tree.structure(one) == tree.structure([one])
        (True, False)
        >>> spec = tree.structure([one, two])
        >>> spec.num_leaves, spec.paths
        (4, ['0.weight', '0.bias', '1.weight', '1.bias'])
        >>> negated = spec.build([-leaf for leaf in tree.leaves([one, two])])
        >>> bool((negated[1].bias == -two.bias).all())
        True
    """

    __slots__ = ("outer", "parts", "rngs")

    def __init__(self, outer: Any, parts: tuple[Any, ...], rngs: tuple[Any, ...]) -> None:
        self.outer = outer  # what stands around; None for a lone module or leaf
        self.parts = parts  # per module its structure, per other leaf None
        self.rngs = rngs  # what each module holds as rng: carried, never compared

    def build(self, leaves: Sequence[Any], *, bare: bool = False) -> Any:
        """Builds a tree of this structure.

        Args:
            leaves: ``num_leaves`` leaves; their number is not checked.
            bare: whether the modules in it hold no rng.

        Returns:
            The tree.
        """
        if self.outer is None:
            structure = self.parts[0]
            if structure is None:
                return leaves[0]
            return unflatten_module(structure, leaves, None if bare else self.rngs[0])
        if self.parts.count(None) == len(self.parts):
            return close(self.outer, leaves)
        children, start = [], 0
        for structure, rng in zip(self.parts, self.rngs, strict=True):
            if structure is None:
                children.append(leaves[start])
                start += 1
            else:
                stop = start + structure.n_leaves
                held = None if bare else rng
                children.append(unflatten_module(structure, leaves[start:stop], held))
                start = stop
        return close(self.outer, children)

    def with_rngs(self, rngs: Iterable[Any]) -> TreeSpec:
        """The same structure, whose modules hold other rngs.

        Args:
            rngs: one for each outermost module, and ``None`` for each leaf outside of modules.

        Returns:
            The structure.
        """
        return TreeSpec(self.outer, self.parts, tuple(rngs))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(other) is TreeSpec and self.parts == other.parts and self.outer == other.outer

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        if self.outer is not None:
            return f"TreeSpec({self.outer}, {self.parts})"
        return "TreeSpec(*)" if self.parts[0] is None else repr(self.parts[0])

    @property
    def paths(self) -> list[str]:
        """The dotted path of each leaf; of a tied one the first, and "" of a lone leaf."""
        outer = item_paths(self.outer)
        return [
            join(path, below)
            for path, part in zip(outer, self.parts, strict=True)
            for below in (("",) if part is None else part.paths)
        ]

    @property
    def num_leaves(self) -> int:
        """The number of leaves of a tree of this structure; holes count, tied leaves count once."""
        return sum([1 if part is None else part.n_leaves for part in self.parts])


LONE = TreeSpec(None, (None,), (None,))
"""The structure of a lone leaf."""


def expand_of(part: Structure | None) -> Sequence[int]:
    """For each place of a module (``None`` for a leaf outside of any) the index of its leaf."""
    return [0] if part is None else part.leaf_at
