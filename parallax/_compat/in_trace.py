"""Reads dynamo's trace from within a traced function: what a local is, and where the trace is.

What is called by ``at_trace()`` runs once, while dynamo traces, and leaves nothing in the graph.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat.dynamo import constant_in_traces
from parallax._compat.functorch import innermost

__all__ = ["Origin", "Place", "Seen", "as_trace_error", "at_trace", "close_reuse", "excludes",
           "graph_of", "is_fixed", "is_reusing", "local", "loop_around", "name_of", "open_reuse",
           "origin_of", "place_of", "reusing"]  # fmt: skip


@constant_in_traces
def at_trace() -> Any:
    """What calls a function of a module while dynamo traces, and gives it the trace's context."""
    from torch._dynamo.comptime import comptime  # imports dynamo, which runs already

    return comptime


class Seen(NamedTuple):
    """A tensor that a trace is about: its stand-in, and the node that computes it."""

    value: Any
    node: Any


def local(context: Any, name: str) -> Seen:
    """The tensor that is the local of that name where the trace is."""
    node = context.get_local(name).as_proxy().node
    return Seen(node.meta["example_value"], node)


def is_fixed(context: Any, name: str) -> bool:
    """Whether a local is a Python constant in this trace."""
    return bool(context.get_local(name).is_python_constant())


def name_of(context: Any, name: str) -> Any:
    """The value of a local that is a constant; otherwise what stands for how it is computed."""
    if is_fixed(context, name):
        return context.get_local(name).as_python_constant()
    node = context.get_local(name).as_proxy().node
    while _name(node) in _COPIES and _is_tensor(node.args[0]):
        node = node.args[0]
    if _name(node) in _CONSTANTS and not node.all_input_nodes:
        return _name(node), repr(node.args), repr(node.kwargs)
    return node


# -- what a tensor is a copy or a row of --------------------------------------------------------

_CONSTANTS = frozenset({"tensor", "full", "scalar_tensor"})
_COPIES = frozenset({"clone", "detach", "alias", "contiguous", "cpu", "to", "lift_fresh"})


class Origin(NamedTuple):
    """What a node computes: a copy of another tensor, a row of it, or a stack of rows."""

    of: Seen
    row: int | None = None
    rows: Sequence[Seen] | None = None


def origin_of(context: Any, seen: Seen) -> Origin | None:
    """Where the numbers of a tensor come from, if it is only a copy, a row or a stack of others."""
    node = seen.node
    if node.op == "placeholder":
        return _origin_outside(context, seen)
    name = _name(node)
    first: Any = node.args[0] if node.args else None
    if name in _COPIES and _is_tensor(first):
        return Origin(_seen(first))
    if name == "stack" and isinstance(first, (list, tuple)) and all(map(_is_tensor, first)):
        return Origin(_seen(first[0]), None, [_seen(row) for row in first])
    if name in ("getitem", "select") and type(node.args[-1]) is int:
        if name == "select" and node.args[1] != 0:
            return None
        if _is_tensor(first):
            index, size = node.args[-1], first.meta["example_value"].shape[0]
            return Origin(_seen(first), index if index >= 0 else index + int(size))
        if _name(first) == "unbind" and first.args[1:] in ((), (0,)) and not first.kwargs:
            return Origin(_seen(first.args[0]), node.args[-1])
    return None


def _origin_outside(context: Any, seen: Seen) -> Origin | None:
    """Where what is given to the body of a higher-order operator comes from."""
    tracer = _tracer(context)
    while tracer is not None and tracer.graph is not seen.node.graph:
        tracer = tracer.parent
    outer = None if tracer is None else tracer.parent
    for node in () if outer is None else outer.graph.nodes:
        if node.meta.get("example_value") is seen.value:
            return Origin(Seen(seen.value, node))
    return None


def _name(node: Any) -> str:
    """The name of what a node calls."""
    if getattr(node, "op", "") not in ("call_function", "call_method"):
        return ""
    return node.target if type(node.target) is str else getattr(node.target, "__name__", "")


def _is_tensor(node: Any) -> bool:
    return isinstance(getattr(node, "meta", {}).get("example_value"), Tensor)


def _seen(node: Any) -> Seen:
    return Seen(node.meta["example_value"], node)


# -- where the trace is -------------------------------------------------------------------------

_LOOPS = {"scan": "scan", "map_impl": "map", "while_loop": "while_loop", "parallax_repeat": "Stack",
          "associative_scan": "associative_scan", "parallax_scan": "scan",
          "parallax_while_loop": "while_loop"}  # fmt: skip


def _tracer(context: Any) -> Any:
    return graph_of(context).current_tracer


def graph_of(context: Any) -> Any:
    """The graph that is traced, of which notes can be kept there."""
    return context._i_will_not_complain_if_bc_breaks_InstructionTranslator().output


def loop_around(context: Any, seen: Seen) -> str | None:
    """The loop whose body is traced, if a tensor is from outside of that body."""
    tracer = _tracer(context)
    while tracer is not None and tracer.graph is not seen.node.graph:
        loop = _LOOPS.get(str(tracer.source_target))
        if loop is not None:
            return loop
        tracer = tracer.parent
    return None


class Place(NamedTuple):
    """Where a trace is."""

    tracer: Any
    chunked: Any
    chunk: int


def place_of(context: Any) -> Place:
    """Where the trace is: its graph and those around it, and the chunk of a ``vmap``."""
    output = graph_of(context)
    frame = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    while frame is not None and frame.f_code.co_name != "_chunked_vmap":
        frame = frame.parent
    chunk = 0 if frame is None else len(frame.symbolic_locals["chunks_output"].items)
    return Place(output.current_tracer, frame, chunk)


def excludes(one: Place, other: Place) -> bool:
    """Whether two places are in branches of which one is run, or in two chunks of a ``vmap``."""
    if one.chunked is not None and one.chunked is other.chunked and one.chunk != other.chunk:
        return True
    branches = list(_branches(one.tracer))
    return any(
        a is not b and a.parent is b.parent for b in _branches(other.tracer) for a in branches
    )


def _branches(place: Any) -> Any:
    while place is not None:
        if str(place.source_target) in ("cond", "parallax_cond"):
            yield place
        place = place.parent


# -- blocks of reuse ----------------------------------------------------------------------------


@contextmanager
def reusing(output: Any) -> Iterator[None]:
    """Within it keys may be used again, while this graph is traced."""
    output.parallax_reuse = getattr(output, "parallax_reuse", 0) + 1
    try:
        yield
    finally:
        output.parallax_reuse -= 1


def open_reuse(context: Any) -> None:
    """Notes that the trace enters a block in which keys may be used again."""
    output = graph_of(context)
    output.parallax_reuse = getattr(output, "parallax_reuse", 0) + 1


def close_reuse(context: Any) -> None:
    """Notes that it leaves one."""
    graph_of(context).parallax_reuse -= 1


def is_reusing(context: Any) -> bool:
    """Whether the trace is within such a block."""
    return getattr(graph_of(context), "parallax_reuse", 0) > 0


# -- errors -------------------------------------------------------------------------------------


def as_trace_error(error: Exception) -> Exception:
    """The error as one that dynamo hands on as it is, of the same class."""
    from torch._dynamo.exc import ShortenTraceback

    cls: Any = type(error)
    made: Any = type(cls.__name__, (ShortenTraceback, cls), {"__module__": cls.__module__})
    return made(*error.args, first_useful_frame=None)  # type: ignore[no-any-return]  # an error


# -- what a list holds --------------------------------------------------------------------------

NOT_FIXED = object()
"""What stands for a value that is computed in the trace, and is no tensor."""


def constant(context: Any, name: str) -> Any:
    """The value of a local that is a constant."""
    return context.get_local(name).as_python_constant()


def items(context: Any, name: str) -> list[Any]:
    """What a local list holds: stand-ins of tensors, constants, and ``NOT_FIXED``."""
    return [_item(item.realize()) for item in _list(context, name).items]


def keep_items(context: Any, name: str, indices: Iterable[int]) -> None:
    """Leaves only the items at some indices in a local list that the trace has made."""
    found = _list(context, name).items
    found[:] = [found[k] for k in indices]


def replace(context: Any, name: str, other: str, pairs: Iterable[tuple[int, int]]) -> None:
    """Puts items of another list into a local list that the trace has made.

    Args:
        context: the trace's.
        name: of the list.
        other: the name of the other one.
        pairs: an index there, and one in the list.
    """
    found, source = _list(context, name).items, _list(context, other).items
    for there, here in pairs:
        found[here] = source[there]


def fix_numbers(context: Any) -> None:
    """Makes constants of the numbers in the local tuple ``args`` that dynamo has symbols for."""
    from torch._dynamo.utils import specialize_symnode
    from torch._dynamo.variables import TupleVariable

    todo = [_list(context, "args").items]
    for found in todo:  # the list grows
        for k, item in enumerate(found):
            found[k] = specialize_symnode(item.realize())
            if isinstance(found[k], TupleVariable):
                todo.append(found[k].items)


def _list(context: Any, name: str) -> Any:
    """What stands for a local list or tuple in the trace."""
    variable = context.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker()
    return variable.realize()


def _item(variable: Any) -> Any:
    if variable.is_python_constant():
        return variable.as_python_constant()
    node = getattr(getattr(variable, "proxy", None), "node", None)
    value = None if node is None else node.meta.get("example_value")
    return value if isinstance(value, Tensor) else NOT_FIXED


def tensors_of(context: Any, name: str) -> list[Seen | None]:
    """The tensors in a local list or tuple, with ``None`` for what is none."""
    nodes = [
        getattr(getattr(item.realize(), "proxy", None), "node", None)
        for item in _list(context, name).items
    ]
    return [None if node is None or not _is_tensor(node) else _seen(node) for node in nodes]


def is_opaque(context: Any, name: str) -> bool:
    """Whether a local list holds anything but tensors, numbers and constants."""
    return not all(
        [item.is_python_constant() or hasattr(item, "proxy")
         for item in [item.realize() for item in _list(context, name).items]]
    )  # fmt: skip


def is_plain(stand_in: Any) -> bool:
    """Whether a tensor is of torch's own class, and its memory is read as it is."""
    return (
        type(stand_in) in _stand_ins()
        and stand_in.layout is torch.strided
        and not (stand_in.is_nested or stand_in.is_conj() or stand_in.is_neg())
    )


@functools.cache
def _stand_ins() -> tuple[type, ...]:
    from torch._subclasses.fake_tensor import FakeTensor

    return (FakeTensor, Tensor, torch.nn.Parameter)


def reply(context: Any, value: Any) -> None:
    """Has ``replied`` give a constant to the code that called ``at_trace``."""
    graph_of(context).parallax_reply = value


@constant_in_traces
def replied() -> Any:
    """What ``reply`` was given last, as a constant of the trace."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    output: Any = InstructionTranslator.current_tx().output
    return output.parallax_reply


def reply_views(context: Any) -> None:
    """Replies which tensors of the local list ``values`` are views."""
    found = [None if one is None else innermost(one.value) for one in tensors_of(context, "values")]
    reply(context, tuple([k for k, x in enumerate(found) if x is not None and x._is_view()]))


# -- what a trace may write into ----------------------------------------------------------------


def allow_donation(context: Any) -> None:
    """Notes that results of this trace may be written into the memory of its arguments."""
    graph_of(context).parallax_allows_donation = True


@constant_in_traces
def allows_donation() -> bool:
    """Whether ``allow_donation`` was called in this trace."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    return getattr(InstructionTranslator.current_tx().output, "parallax_allows_donation", False)
