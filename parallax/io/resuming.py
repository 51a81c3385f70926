"""Modules whose structure depends on the file: the states of optimizers.

Which leaves of a state are holes, and how many step counts there are, depends on the steps that
were made. So a fresh state need not have the structure of the one that was saved. A class with such
states defines ``__as_saved__(constants, tensors)``. It is given the constants of every node of the
file by path, as JSON, and the tensors by name. It returns a module of the structure that was saved,
into which the values are filled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from parallax.core.registry import flatten_module
from parallax.core.structure import Structure
from parallax.tree.select import select
from parallax.tree.state_names import names_within

__all__ = ["as_saved"]

M = TypeVar("M")


def as_saved(like: M, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> M:
    """A module in the structure that was saved, as far as classes in it leave that open.

    Args:
        like: the module.
        header: of the file.
        tensors: those of the file by name; only their shapes and dtypes matter.

    Returns:
        The module; the values of its open parts have no meaning.
    """
    _, structure = flatten_module(like)
    nodes = header.get("nodes")
    kinds = {node.cls for node in structure.nodes() if hasattr(node.cls, "__as_saved__")}
    if nodes is None or not kinds:
        return like
    walk = [path for path, _, node in structure.walk() if type(node) is Structure]
    begins = dict(zip(map(_dotted, walk), names_within(structure)[1], strict=True))
    classes = {path: name for path, name, _ in nodes}
    constants = {path: values for path, _, values in nodes}
    for kind in kinds:
        found = select(like, kind)
        parts: list[Any] = []
        for path, part in zip(found.paths, found.get(), strict=True):
            own = {"": constants.get(path, {}), **_below(constants, f"{path}." if path else "")}
            known = classes.get(path) == type(part).__name__
            parts.append(part.__as_saved__(own, _below(tensors, begins[path])) if known else part)
        like = found.set(parts)
    return like


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _below(entries: Mapping[str, Any], begin: str) -> dict[str, Any]:
    """The entries whose names begin so, by the rest of their names."""
    return {
        name.removeprefix(begin): value for name, value in entries.items() if name.startswith(begin)
    }
