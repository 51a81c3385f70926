"""Distributed leaves are stepped in the parts that each process holds.

Where each entry is stepped by itself, a part is stepped as the whole is. Then torch's kernels take
the parts, which are plain tensors. Operators on distributed tensors work out for each leaf what
each of them communicates, in Python: that takes longer than the step of a small part.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from parallax._compat import shards
from parallax.optim.lists import Lists

__all__ = ["parts_of", "put_parts"]


def parts_of(at: Lists) -> Lists | None:
    """The lists with this process's parts of distributed tensors.

    Returns:
        ``None`` where the parts cannot be stepped alone: nothing is distributed, a moment is
        missing, a tensor is cut in another way than its parameter, or holds sums that wait.
    """
    if at.plain() or not at.full() or not shards.any_distributed(at.params):
        return None
    columns = [at.params, at.grads, *at.moments.values()]
    found: list[list[Any]] = []
    for place, column in enumerate(columns):
        pairs = zip(column, at.params, strict=True)
        found.append([_part(t, param, place > 1) for t, param in pairs])
        if any([part is None for part in found[-1]]):
            return None
    moments = dict(zip(at.moments, found[2:], strict=True))
    parts = Lists(found[0], found[1], moments, at.clocks, at.clock_of)
    return parts if parts.plain() else None


def _part(tensor: Tensor, param: Tensor, moment: bool) -> Tensor | None:
    if moment and tensor.ndim == 0 and not shards.is_distributed(tensor):
        return tensor  # a number, the same in each process
    return shards.part_beside(tensor, param)


def put_parts(at: Lists, parts: Lists, done: Lists, donate: bool) -> Lists:
    """Lists of distributed tensors, around what a kernel made of their parts.

    Args:
        at: the lists before the step.
        parts: what ``parts_of`` made of them.
        done: what the kernel returned.
        donate: whether it wrote into the memory of ``parts``.

    Returns:
        ``at`` if the kernel returned ``parts``, and other lists otherwise.
    """
    if donate:  # a graph that kept one of them must not use it
        written = [at.params, *at.moments.values()]
        increment_version([t for column in written for t in column])
    params = _wrapped(at.params, done.params, at.params)
    moments = {name: _wrapped(at[name], column, at.params) for name, column in done.moments.items()}
    if done is not parts:
        return Lists(params, at.grads, moments, at.clocks, at.clock_of, at.known)
    at.params, at.moments = params, moments
    return at


def _wrapped(before: list[Any], after: list[Any], params: list[Any]) -> list[Any]:
    triples = zip(before, after, params, strict=True)
    return [shards.with_part(t, part, param) for t, part, param in triples]
