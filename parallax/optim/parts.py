"""Distributed leaves are stepped in the parts that each process holds.

Where each entry is stepped by itself, a part is stepped as the whole is. Then torch's kernels take
the parts, which are plain tensors. Operators on distributed tensors work out for each leaf what
each of them communicates, in Python: that takes longer than the step of a small part. While dynamo
traces it takes as long, and a graph of them holds more memory than the fused kernel.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import increment_version

from parallax._compat import functorch, in_trace, shards
from parallax.optim.lists import Lists, joined

__all__ = ["hold_parts_in_trace", "parts_in_trace", "parts_of", "put_parts", "put_parts_in_trace"]


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


# -- while dynamo traces ------------------------------------------------------------------------


def hold_parts_in_trace(at: Lists) -> bool:
    """As ``parts_of(at) is not None``, but that moments may be missing."""
    if not shards.are_known():
        return False
    # ``_look`` reads these locals. To trace its questions would take longer than all else.
    count, tensors = len(at.params), joined([at.params, at.grads, *at.moments.values()])
    in_trace.at_trace()(_look)
    del count, tensors
    return bool(in_trace.replied())


def _look(context: Any) -> None:
    """Answers the question of ``hold_parts_in_trace``, from its locals."""
    count, tensors = in_trace.constant(context, "count"), in_trace.items(context, "tensors")
    params = tensors[:count]
    in_trace.reply(
        context,
        not functorch.transform_active()
        and shards.any_distributed(params)
        and all([
            t is None or (isinstance(t, Tensor) and _is_held(t, params[k % count], k >= 2 * count))
            for k, t in enumerate(tensors)
        ]),
    )  # fmt: skip


def _is_held(tensor: Tensor, param: Tensor, moment: bool) -> bool:
    part = _part(tensor, param, moment)
    return part is not None and in_trace.is_plain(part)


def parts_in_trace(at: Lists) -> Lists:
    """The lists with this process's parts of distributed tensors; no moment is missing."""
    n, names = len(at.params), list(at.moments)
    found = shards.locals_in_trace(joined([at.params, at.grads, *at.moments.values()]))
    columns = [found[k * n : k * n + n] for k in range(2 + len(names))]
    moments = dict(zip(names, columns[2:], strict=True))
    return Lists(columns[0], columns[1], moments, at.clocks, at.clock_of)


def put_parts_in_trace(at: Lists, done: Lists) -> Lists:
    """Lists of distributed tensors, around what was made of their parts."""
    n, names = len(at.params), list(at.moments)
    before = joined([at.params, *at.moments.values()])
    after = joined([done.params, *[done.moments[name] for name in names]])
    found = shards.around_in_trace(before, after, at.params * (1 + len(names)))
    columns = [found[k * n : k * n + n] for k in range(1 + len(names))]
    moments = dict(zip(names, columns[1:], strict=True))
    return Lists(columns[0], at.grads, moments, at.clocks, at.clock_of)
