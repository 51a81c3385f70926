"""What a plan says of one dimension of the mesh: plain values, compared by what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from parallax.core.arguments import shown

__all__ = ["FullyShard", "Replicated", "Rule", "checked_rule", "fsdp", "replicate"]


@dataclass(frozen=True)
class FullyShard:
    """What ``fsdp`` returns: some parts of the tree are held in pieces.

    Attributes:
        globs: which parts, as in ``tree.select``.
    """

    globs: tuple[str, ...]

    def __repr__(self) -> str:
        return f"fsdp({', '.join(map(repr, self.globs))})"


@dataclass(frozen=True)
class Replicated:
    """What ``replicate`` returns: every process holds the whole of each leaf."""

    def __repr__(self) -> str:
        return "replicate()"


Rule: TypeAlias = FullyShard | Replicated | Mapping[str, int]


def fsdp(*globs: str) -> FullyShard:
    """Data parallelism in which the named parts are held in pieces (fully sharded).

    Each leaf of these parts is cut along its first dimension that divides and that no other rule
    cuts; a leaf without one is held whole. The batch is cut as with ``replicate``.

    While such a part is called its leaves are put together, by one collective; they are gone when
    it returns, and backward puts them together once more. Gradients are cut as their leaves are.
    Name what is called: ``"blocks.*"`` gathers one block at a time, ``"blocks"`` each module in it.

    Args:
        *globs: paths or globs of the parts that are gathered together where they are used, as in
            ``tree.select``: ``"blocks.*"``.

    Returns:
        The rule, for one dimension of the mesh of a ``Plan``.

    Raises:
        TypeError: if there is none, or one is no string.

    Example:
        >>> from parallax import distributed as dist
        >>> dist.fsdp("blocks.*")
        fsdp('blocks.*')
    """
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(
            f"dist.fsdp(*globs): expected paths or globs of the parts that are held in pieces, got "
            f"{shown(globs)}. Write dist.fsdp('blocks.*')"
        )
    return FullyShard(globs)


def replicate() -> Replicated:
    """Data parallelism in which each process holds the whole of each leaf and a part of the batch.

    Returns:
        The rule, for one dimension of the mesh of a ``Plan``.

    Example:
        >>> from parallax import distributed as dist
        >>> dist.replicate()
        replicate()
    """
    return Replicated()


def checked_rule(dimension: str, rule: Any) -> Rule:
    """The rule of a dimension of the mesh, which the caller cannot change afterwards.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(rule, (FullyShard, Replicated)):
        return rule
    what = f"dist.Plan({dimension}=)"
    if rule is fsdp or rule is replicate:
        call = "dist.replicate()" if rule is replicate else "dist.fsdp('blocks.*')"
        raise TypeError(f"{what}: expected a rule, got the function. Call it: {dimension}={call}")
    if not isinstance(rule, Mapping):
        raise TypeError(
            f"{what}: expected dist.replicate(), dist.fsdp(*globs) or a dict of globs and "
            f"dimensions, got {shown(rule)}. Write {dimension}={{'**.up.weight': 0}}"
        )
    for glob, dim in rule.items():
        if not isinstance(glob, str) or type(dim) is not int:
            raise TypeError(
                f"{what}: expected globs and the dimension each cuts, got {shown(glob)}: "
                f"{shown(dim)}. Write {dimension}={{'**.up.weight': 0}}"
            )
    return dict(rule)
