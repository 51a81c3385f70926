"""From the rules of a plan to each leaf of a tree: along which dimensions it is cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from parallax.core.fields import Lazy
from parallax.distributed.rules import FullyShard
from parallax.tree.chart import Chart, Entry
from parallax.tree.match import match
from parallax.tree.places import Survey

__all__ = ["Placed", "placed_leaves"]


@dataclass(frozen=True)
class Placed:
    """Where one leaf of a tree is held.

    Attributes:
        path: its path, of a tied leaf the first.
        shape: of the whole leaf.
        dtype: its dtype.
        cuts: for each dimension of the mesh, of those larger than 1, the dimension of the leaf that
            it cuts; ``None`` where every process along it holds the same.
        sizes: of these dimensions of the mesh.
        part: the path of the module that ``fsdp`` gathers it with when that is called; empty for
            none.
        blocks: how many equal modules it stands for: those of a ``Stack``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    cuts: Mapping[str, int | None]
    sizes: Mapping[str, int]
    part: str
    blocks: int

    @property
    def local_shape(self) -> tuple[int, ...]:
        """The shape of what one process holds."""
        shape = list(self.shape)
        for name, dim in self.cuts.items():
            if dim is not None:
                shape[dim] //= self.sizes[name]
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        """The bytes of what one process holds."""
        return torch.Size(self.local_shape).numel() * self.dtype.itemsize

    def __str__(self) -> str:
        cuts = [f"Shard({dim}) on {name}" for name, dim in self.cuts.items() if dim is not None]
        return ", ".join(cuts) or "replicated"


def placed_leaves(
    survey: Survey, sizes: Mapping[str, int], rules: Mapping[str, Any]
) -> list[Placed | None]:
    """For each unique leaf of a tree where it is held; ``None`` for holes, keys and other values.

    Raises:
        LookupError: if a rule matches nothing.
        ValueError: if two rules claim one leaf, or a dimension does not divide.
    """
    stacked = _stacked_dims(survey.chart)
    found: list[Placed | None] = []
    facts = zip(survey.chart.first, survey.leaves, stacked, strict=True)
    for entry, leaf, dims in facts:
        held = isinstance(leaf, (Tensor, Lazy)) and entry.role != "key"
        whole = dict.fromkeys([name for name, size in sizes.items() if size > 1])
        if held:
            shape = tuple(leaf.shape)
            blocks = math.prod(shape[:dims])
            found.append(Placed(entry.path, shape, leaf.dtype, whole, sizes, "", blocks))
        else:
            found.append(None)
    # Those that say where come first; fsdp takes what they leave.
    for name, rule in rules.items():
        if isinstance(rule, Mapping):
            _cut_as_told(survey, found, stacked, name, rule, sizes)
    for name, rule in rules.items():
        if isinstance(rule, FullyShard):
            _cut_where_free(survey, found, stacked, name, rule, sizes)
    return found


def _stacked_dims(chart: Chart) -> list[int]:
    """For each unique leaf how many of its first dimensions stand for equal modules (``Stack``)."""
    found = [0] * len(chart.first)
    for entry in chart.entries:
        if getattr(entry.cls, "__repeats__", False):
            for k in set(chart.unique(entry)):
                found[k] += 1
    return found


def _cut_as_told(
    survey: Survey,
    found: list[Placed | None],
    stacked: Sequence[int],
    name: str,
    rule: Mapping[str, int],
    sizes: Mapping[str, int],
) -> None:
    claims: dict[int, str] = {}
    for glob, dim in rule.items():
        what = f"{name}={{{glob!r}: {dim}}}"
        for entry in _meant(survey, glob, what):
            for k in set(survey.chart.unique(entry)):
                placed = found[k]
                if placed is None:
                    continue
                if k in claims and claims[k] != glob:
                    other = f"{name}={{{claims[k]!r}: {rule[claims[k]]}}}"
                    raise ValueError(
                        f"dist.Plan: {placed.path} is claimed by two rules, {other} and {what}. "
                        f"Narrow one of them"
                    )
                if k not in claims:
                    claims[k] = glob
                    found[k] = _cut(placed, name, dim, stacked[k], sizes[name], what)


def _cut(placed: Placed, name: str, dim: int, stacked: int, count: int, what: str) -> Placed:
    """Cuts a leaf along a dimension, which is counted within the stacked module."""
    own = placed.shape[stacked:]
    if not -len(own) <= dim < len(own):
        raise ValueError(
            f"dist.Plan: the rule {what} cuts dimension {dim} of {placed.path}, whose shape is "
            f"{own}. Give a dimension that it has, or a glob without it"
        )
    at = stacked + dim % len(own)
    if placed.shape[at] % count:
        raise ValueError(
            f"dist.Plan: the rule {what} cuts dimension {dim} of {placed.path}, which has "
            f"{placed.shape[at]} entries, for {count} processes, and that does not divide. Cut "
            f"another dimension, or choose sizes of the mesh that divide it"
        )
    other = next((other for other, cut in placed.cuts.items() if cut == at), None)
    if other is not None:
        raise ValueError(
            f"dist.Plan: dimension {dim} of {placed.path} is claimed by two rules, one for {other} "
            f"and {what}. Cut another dimension with one of them"
        )
    return replace(placed, cuts={**placed.cuts, name: at}) if count > 1 else placed


def _cut_where_free(
    survey: Survey,
    found: list[Placed | None],
    stacked: Sequence[int],
    name: str,
    rule: FullyShard,
    sizes: Mapping[str, int],
) -> None:
    claims: dict[int, tuple[str, str]] = {}
    for glob in rule.globs:
        for entry in _meant(survey, glob, f"{name}=fsdp({glob!r})"):
            for part in _called(survey.chart, entry):
                for k in set(survey.chart.unique(entry)) & set(survey.chart.unique(part)):
                    placed = found[k]
                    if placed is None:
                        continue
                    first, other = claims.setdefault(k, (glob, entry.path))
                    if _inside(other, entry.path):
                        raise ValueError(
                            f"dist.Plan: {placed.path} is claimed by two rules, "
                            f"{name}=fsdp({first!r}), which gathers {other}, and "
                            f"{name}=fsdp({glob!r}), which gathers {entry.path}. "
                            f"Name parts that do not hold one another"
                        )
                    if not placed.part:
                        cut = _cut_first_free(placed, name, stacked[k], sizes[name])
                        found[k] = replace(cut, part=part.path)


def _called(chart: Chart, entry: Entry) -> list[Entry]:
    """The modules that are called when what stands there is used: a container is not called."""
    if entry.cls is None:
        owner = chart.owners[entry.start]
        return [entry if owner is None else owner]
    if entry.is_module and not hasattr(entry.cls, "__repeats__"):
        return [entry]
    depth = len(entry.keys) + 1
    below = [e for e in chart.entries if len(e.keys) == depth and entry.holds(e)]
    return [part for one in below for part in _called(chart, one)]


def _inside(one: str, other: str) -> bool:
    """Whether one of two parts is within the other; a tied leaf may be in several beside."""
    short, long = sorted((one, other), key=len)
    return one != other and (not short or long.startswith(f"{short}."))


def _cut_first_free(placed: Placed, name: str, stacked: int, count: int) -> Placed:
    taken = placed.cuts.values()
    for at in range(stacked, len(placed.shape)):
        size = placed.shape[at]
        if at not in taken and size % count == 0 and 0 not in placed.shape:
            return _cut(placed, name, at - stacked, stacked, count, "")
    return placed


def _meant(survey: Survey, glob: str, what: str) -> list[Entry]:
    try:
        return match(survey, glob)[0]
    except LookupError as error:
        reason = str(error).removeprefix("select: ")
        raise LookupError(f"dist.Plan: the rule {what} matches nothing: {reason}") from None
