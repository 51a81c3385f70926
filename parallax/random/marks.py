"""Keys are used once: the marks that say so.

A mark lies on the leaf tensor of a key, for trees are rebuilt around that. Keys that are derived by
``fold_in`` or stand in a stack get marks from the mark they come from, so that the same key is
known again however often it is made. What a transform or a trace wraps is opened first: the mark
is on the tensor within. Dynamo's traces are looked after by ``in_trace``, while they are made.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, in_trace, modes
from parallax.random.reuse_blocks import is_exempt
from parallax.random.uses import KeyReusedError, Mark

__all__ = ["adopt", "carry_on", "consume", "join", "link", "mark_of", "note",
           "part", "put", "renew", "spend"]  # fmt: skip

_MOST_ROWS = 1024  # a larger stack is not searched when a copy of a key turns up


# -- the marks of leaves ----------------------------------------------------------------------


def mark_of(data: Any) -> Mark:
    """The mark on the leaf of a key; a new one if there is none."""
    leaf: Any = functorch.innermost(data) if functorch.is_wrapped(data) else data
    known = _marks_in_mode(leaf)
    if known is not None:
        return known.setdefault(id(leaf), (leaf, Mark()))[1]
    mark = getattr(leaf, "_mark", None)
    if type(mark) is not Mark:
        mark = leaf._mark = Mark()
    return mark


def put(data: Any, mark: Mark) -> None:
    """Puts a mark on the leaf of a key."""
    leaf: Any = functorch.innermost(data) if functorch.is_wrapped(data) else data
    known = _marks_in_mode(leaf)
    if known is None:
        leaf._mark = mark
    else:
        known[id(leaf)] = leaf, mark


def _marks_in_mode(leaf: Any) -> dict[int, tuple[Tensor, Mark]] | None:
    """The marks of plain tensors in a trace; a function may be traced more than once."""
    if type(leaf) is not Tensor or not modes.dispatch_mode_active():
        return None
    mode = modes.tracing_mode()
    return None if mode is None else mode.__dict__.setdefault("_parallax_marks", {})


def link(child: Tensor, parent: Tensor, name: Any, path: str | None = None) -> None:
    """Says that a key was folded from another by a name: an int, a string or an integer tensor.

    Args:
        child: the leaf of the new key.
        parent: the leaf of the key that it was folded from.
        name: what it was folded with.
        path: of the module whose key it is.
    """
    if dynamo.is_compiling():
        in_trace.at_trace()(_link_in_trace)
        return
    if isinstance(name, Tensor):
        if not _is_eager(name) or not _is_eager(parent):
            return
        name = int(name) if name.ndim == 0 else tuple(name.tolist())
    mark = mark_of(parent).child(name)
    mark.path = mark.path if path is None else path
    put(child, mark)


def renew(data: Tensor) -> None:
    """Says that a key is another one, though its bits are those of a key that is known."""
    if dynamo.is_compiling():
        in_trace.at_trace()(_renew_in_trace)
    else:
        put(data, Mark())


def part(stack: Tensor, rows: Sequence[Tensor]) -> None:
    """Says that a stack of keys was taken apart into its rows."""
    mark = mark_of(stack)
    for index, row in enumerate(rows):
        put(row, mark.row(index))


def join(stack: Tensor, rows: Sequence[Tensor]) -> None:
    """Says that a stack of keys was made of others."""
    if not dynamo.is_compiling():  # there it is known how it was computed
        mark = Mark()
        mark.rows = {index: mark_of(row) for index, row in enumerate(rows)}
        put(stack, mark)


def carry_on(given: Sequence[Tensor], returned: Sequence[Tensor]) -> None:
    """Says that the next pass of a loop, of which one pass is traced, is given what this returns.

    Raises:
        KeyReusedError: if that is a key which this pass has used.
    """
    for before, after in zip(given, returned, strict=True):
        if after.dtype is torch.int64 and after.device.type == "cpu":
            _carry_on(before, after)


def _carry_on(before: Tensor, after: Tensor) -> None:
    in_trace.at_trace()(_carry_on_in_trace)


def _is_eager(data: Any) -> bool:
    return (
        type(data) is Tensor and not functorch.is_wrapped(data) and not modes.dispatch_mode_active()
    )


# -- copies that a map makes ------------------------------------------------------------------

_noted: deque[weakref.ref[Tensor]] = deque(maxlen=64)


def note(data: Any) -> None:
    """Remembers a leaf that a tree was taken apart into, for what it is put together from."""
    if not dynamo.is_compiling() and type(data) is Tensor:
        mark_of(data)  # so that it is known again itself
        _noted.append(weakref.ref(data))


def adopt(data: Any) -> None:
    """Gives a leaf that a tree is put together from the mark of the key that it is a copy of."""
    if dynamo.is_compiling() or type(getattr(data, "_mark", None)) is Mark or not _is_eager(data):
        return
    if data.dtype is not torch.int64 or data.device.type != "cpu":
        return
    if data.ndim > 1 or data.numel() > _MOST_ROWS:
        return
    known: dict[int, Mark] = {}
    for ref in list(_noted):
        leaf = ref()
        if leaf is None or leaf is data or not _is_eager(leaf):
            continue
        if leaf.ndim > 1 or leaf.numel() > _MOST_ROWS:
            continue
        if leaf.dtype is torch.int64 and leaf.device.type == "cpu":
            mark = mark_of(leaf)
            if leaf.ndim == 0:
                known[int(leaf)] = mark
            else:
                known |= {bits: mark.row(index) for index, bits in enumerate(leaf.tolist())}
    if data.ndim == 0:
        data._mark = known.get(int(data)) or Mark()
        return
    mark = data._mark = Mark()
    mark.rows = {index: known[bits] for index, bits in enumerate(data.tolist()) if bits in known}


# -- use --------------------------------------------------------------------------------------


def consume(data: Tensor, by: str) -> None:
    """Marks a key as used.

    Raises:
        KeyReusedError: if the key was used before, unless that is exempt.
    """
    if dynamo.is_compiling():
        in_trace.at_trace()(_consume_in_trace)
    else:
        spend(mark_of(data), by)


def spend(mark: Mark, by: str) -> None:
    """As ``consume``, for what has a mark and no leaf."""
    used, chunk = mark.user(), functorch.chunk_of_vmap()
    if used is None:
        if not is_exempt():
            mark.use(by)
            mark.place = chunk
    elif not (is_exempt() or _in_other_chunk(mark.place, chunk)):
        raise mark.error(by, used)


def _in_other_chunk(one: Any, other: Any) -> bool:
    """Whether one call with what it shares was done in chunks, of which these are two."""
    return bool(one and other and one[0] == other[0] and one[1] != other[1])


# -- while dynamo traces ----------------------------------------------------------------------


def _mark_in_trace(context: Any, seen: in_trace.Seen) -> Mark:
    """The mark on the stand-in for a key; copies and rows are known by how they were computed."""
    leaf: Any = functorch.innermost(seen.value)
    mark = getattr(leaf, "_mark", None)
    if type(mark) is Mark:
        return mark
    origin = in_trace.origin_of(context, seen)
    if origin is None:
        mark = Mark()
    elif origin.rows is not None:
        mark = Mark()
        mark.rows = {k: _mark_in_trace(context, row) for k, row in enumerate(origin.rows)}
    else:
        mark = _mark_in_trace(context, origin.of)
        mark = mark if origin.row is None else mark.row(origin.row)
    leaf._mark = mark
    return mark


def _link_in_trace(context: Any) -> None:
    """What ``link`` does; its arguments are the locals of that name."""
    parent = in_trace.local(context, "parent")
    mark = _mark_in_trace(context, parent).child(in_trace.name_of(context, "name"))
    path = in_trace.name_of(context, "path")
    mark.path = mark.path if path is None else path
    if in_trace.is_fixed(context, "name"):
        mark.loop = in_trace.loop_around(context, parent)
    child = in_trace.local(context, "child")
    leaf: Any = functorch.innermost(child.value)
    leaf._mark = mark


def _renew_in_trace(context: Any) -> None:
    """What ``renew`` does; its argument is the local of that name."""
    leaf: Any = functorch.innermost(in_trace.local(context, "data").value)
    leaf._mark = Mark()


def _carry_on_in_trace(context: Any) -> None:
    """What ``carry_on`` does; its arguments are the locals of that name."""
    if is_exempt() or in_trace.is_reusing(context):
        return
    mark = _mark_in_trace(context, in_trace.local(context, "before"))
    used = _user_in_each_pass(mark)
    if used is not None and mark is _mark_in_trace(context, in_trace.local(context, "after")):
        raise in_trace.as_trace_error(mark.error(used, used))


def _user_in_each_pass(mark: Mark) -> str | None:
    """What uses a key, or one folded from it by a name that is the same in each pass."""
    if mark.user() is not None:
        return mark.user()
    children = (mark.children or {}).items()
    fixed = [child for name, child in children if isinstance(name, (str, int))]
    return next((used for child in fixed if (used := _user_in_each_pass(child))), None)


def _consume_in_trace(context: Any) -> None:
    """What ``consume`` does; its arguments are the locals of that name."""
    if is_exempt() or in_trace.is_reusing(context):
        return
    data, by = in_trace.local(context, "data"), in_trace.name_of(context, "by")
    mark, place = _mark_in_trace(context, data), in_trace.place_of(context)
    loop = mark.loop or in_trace.loop_around(context, data)
    if loop is not None:
        raise in_trace.as_trace_error(
            KeyReusedError(
                f"{by} in the body of a {loop} was given a key from outside of it, so its numbers "
                f"would repeat in every pass. Give each pass its own: keys = random.split(key, n) "
                f"among what is looped over, or random.fold_in(key, i)"
            )
        )
    used = mark.user()
    if used is None:
        mark.use(by)
        mark.place = place
    elif not (mark.place and in_trace.excludes(mark.place, place)):
        raise in_trace.as_trace_error(mark.error(by, used))
