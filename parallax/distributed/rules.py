"""What a plan says of one dimension of the mesh: plain values, compared by what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from parallax._errors.arguments import shown

__all__ = [
    "FullyShard", "Replicated", "Rule", "TensorParallel", "checked_rule", "fsdp", "replicate",
    "sequence_of", "tensor_parallel",
]  # fmt: skip


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


@dataclass(frozen=True)
class TensorParallel(Mapping[str, int]):
    """What ``tensor_parallel`` returns: the dimension that each leaf is cut along.

    Attributes:
        cuts: by path or glob.
        sequence: the dimension that activations are cut along between the layers, if any.
    """

    cuts: Mapping[str, int]
    sequence: int | None = None

    def __getitem__(self, glob: str) -> int:
        return self.cuts[glob]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cuts)

    def __len__(self) -> int:
        return len(self.cuts)

    def __repr__(self) -> str:
        sequence = "" if self.sequence is None else f", sequence={self.sequence}"
        return f"tensor_parallel({dict(self.cuts)}{sequence})"


def sequence_of(rule: Any) -> int | None:
    """The dimension that a rule cuts activations along between the layers, if it does."""
    return rule.sequence if isinstance(rule, TensorParallel) else None


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


def tensor_parallel(cuts: Mapping[str, int], *, sequence: int | None = None) -> TensorParallel:
    """Tensor parallelism: the leaves are cut along the dimensions given.

    A dict alone says the same without ``sequence``.

    With ``sequence=1`` activations ``(batch, length, features)`` are cut along their length where
    tensor parallelism would hold them whole, in norms, dropout and sums: a layer that is cut along
    its outputs gathers what it takes, and what a layer computes that is cut along its inputs is
    reduced and scattered. As much is sent, and each process holds a part of the activations.

    Args:
        cuts: from paths or globs, as in ``tree.select``, to dimensions.
        sequence: the dimension of activations, and of batches, that is cut between the layers.

    Returns:
        The rule, for one dimension of the mesh of a ``Plan``.

    Raises:
        TypeError: if ``cuts`` is no such dict, or ``sequence`` no dimension.

    Source: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models",
    2022, section 4.2.2.

    Example:
        >>> from parallax import distributed as dist
        >>> dist.tensor_parallel({"**.up.*": 0, "**.down.weight": 1}, sequence=1)
        tensor_parallel({'**.up.*': 0, '**.down.weight': 1}, sequence=1)
    """
    if not isinstance(cuts, Mapping):
        raise TypeError(
            f"dist.tensor_parallel(cuts=): expected a dict of globs and dimensions, got "
            f"{shown(cuts)}. Write dist.tensor_parallel({{'**.up.weight': 0}})"
        )
    _check_cuts("dist.tensor_parallel(cuts=)", cuts, "dist.tensor_parallel({'**.up.weight': 0})")
    if sequence is not None and (type(sequence) is not int or sequence < 0):
        raise TypeError(
            f"dist.tensor_parallel(sequence=): expected the dimension of activations that counts "
            f"positions, or None, got {shown(sequence)}. Write sequence=1"
        )
    return TensorParallel(dict(cuts), sequence)


def _check_cuts(what: str, cuts: Mapping[Any, Any], right: str) -> None:
    for glob, dim in cuts.items():
        if not isinstance(glob, str) or type(dim) is not int:
            raise TypeError(
                f"{what}: expected globs and the dimension each cuts, got {shown(glob)}: "
                f"{shown(dim)}. Write {right}"
            )


def checked_rule(dimension: str, rule: Any) -> Rule:
    """The rule of a dimension of the mesh, which the caller cannot change afterwards.

    Raises:
        TypeError: if it is none.
    """
    if isinstance(rule, (FullyShard, Replicated, TensorParallel)):
        return rule
    what = f"dist.Plan({dimension}=)"
    calls = {
        fsdp: "dist.fsdp('blocks.*')",
        replicate: "dist.replicate()",
        tensor_parallel: "dist.tensor_parallel({'**.up.weight': 0})",
    }
    call = calls.get(rule) if callable(rule) else None
    if call is not None:
        raise TypeError(f"{what}: expected a rule, got the function. Call it: {dimension}={call}")
    if not isinstance(rule, Mapping):
        raise TypeError(
            f"{what}: expected dist.replicate(), dist.fsdp(*globs) or a dict of globs and "
            f"dimensions, got {shown(rule)}. Write {dimension}={{'**.up.weight': 0}}"
        )
    _check_cuts(what, rule, f"{dimension}={{'**.up.weight': 0}}")
    return dict(rule)
