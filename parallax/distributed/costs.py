"""What a step costs under a plan, from the placements alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from parallax.distributed.placements import Placed
from parallax.distributed.rules import FullyShard, sequence_of

__all__ = ["Collective", "collectives_of", "largest_gathered"]

_RING = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}
"""How often a process sends its part of a tensor to the next, for each of the others."""


class Collective(NamedTuple):
    """The collectives of one kind along one dimension of the mesh, in a step.

    Attributes:
        kind: ``"all_gather"``, ``"reduce_scatter"`` or ``"all_reduce"``.
        dimension: of the mesh.
        why: what for.
        times: how many.
        nbytes: how many bytes each process sends for all of them, around a ring.
    """

    kind: str
    dimension: str
    why: str
    times: int
    nbytes: int


def _collective(kind: str, name: str, why: str, count: int, payload: int, size: int) -> Collective:
    return Collective(kind, name, why, count, _RING[kind] * payload * (size - 1) // size)


def collectives_of(
    trained: Sequence[Placed],
    others: Sequence[Placed],
    sizes: Mapping[str, int],
    rules: Mapping[str, Any],
    tokens: int,
) -> list[Collective]:
    """The collectives of a step.

    Args:
        trained: the leaves that have gradients.
        others: those that have none.
        sizes: of the mesh.
        rules: by dimension.
        tokens: the rows that the linear layers of a process compute in a step.
    """
    found: list[Collective] = []
    for name, rule in rules.items():
        size = sizes[name]
        if size == 1:
            continue
        if isinstance(rule, Mapping):
            found += _of_tensor_parallel(trained, name, size, tokens, sequence_of(rule))
            if sequence_of(rule) is None:
                continue
        elif isinstance(rule, FullyShard):
            gathered = _buckets([*trained, *others], name, size)
            reduced = _buckets(trained, name, size)
            for why, kind, buckets in (
                ("parts in forward", "all_gather", gathered),
                ("parts in backward", "all_gather", gathered),
                ("their gradients", "reduce_scatter", reduced),
            ):
                count, payload = _total(buckets)
                found.append(_collective(kind, name, why, count, payload, size))
        # What is gathered along another dimension is summed part by part, when backward has it.
        copies = _copies(trained, name)
        apart = [other for other in rules if other != name and _gathers(rules, sizes, other)]
        parts = [one for one in copies if any([one.cuts[other] is not None for other in apart])]
        rest = {one.path for one in copies} - {one.path for one in parts}
        sums = [_buckets(parts, other, 1) for other in apart]
        sums.append(_buckets([one for one in copies if one.path in rest], None, 1))
        totals = [_total(buckets) for buckets in sums]
        count, payload = (sum(numbers) for numbers in zip(*totals, strict=True))
        found.append(_collective("all_reduce", name, "gradients", count, payload, size))
    return [one for one in found if one.times]


def _copies(trained: Sequence[Placed], name: str) -> list[Placed]:
    """The leaves of which every process along a dimension computes a term of the gradient.

    A layer that is cut along it computes with all positions, and so whole gradients.
    """
    cut = {one.path.rpartition(".")[0] for one in trained if one.cuts[name] is not None}
    return [
        one for one in trained if one.cuts[name] is None and one.path.rpartition(".")[0] not in cut
    ]


def _gathers(rules: Mapping[str, Any], sizes: Mapping[str, int], name: str) -> bool:
    return isinstance(rules[name], FullyShard) and sizes[name] > 1


def _buckets(
    leaves: Iterable[Placed], name: str | None, size: int
) -> dict[tuple[str, torch.dtype], tuple[int, int]]:
    """What goes together: of each part and dtype how often, and the bytes of one.

    Args:
        leaves: of those the ones that the dimension cuts.
        name: the dimension; ``None`` for all leaves, in one part.
        size: how many shares are put together.
    """
    found: dict[tuple[str, torch.dtype], tuple[int, int]] = {}
    for one in leaves:
        if name is None or one.cuts[name] is not None:
            part, blocks = ("", 1) if name is None else (one.part, one.blocks)
            before = found.get((part, one.dtype), (0, 0))[1]
            found[part, one.dtype] = blocks, before + one.nbytes * size // blocks
    return found


def _total(buckets: Mapping[Any, tuple[int, int]]) -> tuple[int, int]:
    counts = [count for count, _ in buckets.values()]
    return sum(counts), sum([count * payload for count, payload in buckets.values()])


def _of_tensor_parallel(
    trained: Sequence[Placed], name: str, size: int, tokens: int, sequence: int | None
) -> list[Collective]:
    """The sums of activations, for matrices ``(out, in)`` in pairs within one module.

    Where activations are cut between the pairs, what a pair takes is gathered, and what it returns
    is reduced and scattered.

    Of each matrix that is cut along ``in``, and comes after others that are cut along ``out``, what
    it computes is summed in forward; and in backward the gradient of the input of those others,
    which has as many features.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3.
    """
    count = payload = 0
    begun: set[str] = set()
    for one in trained:
        within = ".".join(one.path.split(".")[:-2])
        last = len(one.shape) - 1
        if last and one.cuts[name] == last - 1:
            begun.add(within)
        elif last and one.cuts[name] == last and within in begun:
            count += one.blocks
            payload += one.blocks * tokens * one.shape[-2] * one.dtype.itemsize
    return [
        _collective(kind, name, f"activations in {when}", count, payload, size)
        for when in ("forward", "backward")
        for kind in (("all_reduce",) if sequence is None else ("all_gather", "reduce_scatter"))
    ]


def largest_gathered(leaves: Iterable[Placed], name: str, size: int) -> tuple[str, int]:
    """The part of most bytes when it is put together along a dimension, and these bytes."""
    found: dict[str, int] = {}
    for (part, _), (_, nbytes) in _buckets(leaves, name, size).items():
        found[part] = found.get(part, 0) + nbytes
    return max(found.items(), key=lambda item: item[1], default=("", 0))
