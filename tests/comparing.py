"""How tests compare two trees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax import tree


def same_leaves(one: Any, other: Any) -> bool:
    """Whether two trees have as many leaves, equal bit by bit."""
    pairs = zip(tree.leaves(one), tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def same_tree(one: Any, other: Any) -> bool:
    """Whether two trees have equal structures, too."""
    return tree.structure(one) == tree.structure(other) and same_leaves(one, other)


def assert_close_trees(one: Any, other: Any) -> None:
    """The structures are equal, and the leaves as close as torch's own tests ask."""
    assert type(one) is type(other)
    assert tree.structure(one) == tree.structure(other)
    for a, b in zip(tree.leaves(one), tree.leaves(other), strict=True):
        if isinstance(a, Tensor):
            torch.testing.assert_close(a, b)
        else:
            assert (type(a), a) == (type(b), b)
