"""How tests of mistakes read an error, and see that nothing was half-done."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from torch.utils import _pytree

from parallax import Module, tree

META: Any = type(Module)


def says(error: type[Exception], *parts: str) -> Any:
    """``pytest.raises`` of an error whose message has all these parts."""

    def check(caught: BaseException) -> bool:
        message = str(caught)
        missing = [part for part in parts if part not in message]
        assert not missing, f"{missing} not in: {message}"
        return True

    return pytest.raises(error, check=check)


def registered() -> tuple[int, int]:
    """How many classes optree's global registry and torch's know."""
    entries: Any = optree.register_pytree_node
    return len(entries.get(namespace="")), len(_pytree.SUPPORTED_NODES)


def values(module: Any) -> list[Any]:
    """The leaves' identities and numbers, to see later that nothing was written to."""
    return [(id(leaf), leaf.clone(), leaf._version) for leaf in tree.leaves(module)]


def unchanged(module: Any, before: list[Any]) -> bool:
    now = values(module)
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(before, now, strict=True)
    )
