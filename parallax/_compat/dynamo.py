"""Dynamo: its traces, their results, functions it must not trace, its guards and caches.

The public ways load dynamo, which takes as long as all of torch, or do not exist: the checks that
dynamo writes, what it made of a function, what it met in a trace. What needs dynamo's Python loads
it when it is called, not when this file is imported.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling
"""True while dynamo traces, which folds the call to a constant; a third of ``is_compiling``'s time.

Not true in a non-strict ``torch.export``, which runs Python as it is and wants the eager path."""


def constant_in_traces(function: F) -> F:
    """As ``torch.compiler.assume_constant_result``, which loads dynamo to say no more than this."""
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010  # types know no such attribute
    return function


@constant_in_traces
def calls_around(adding: str) -> tuple[int, int]:
    """How many calls of the object that is called now stand around its call in the trace.

    Args:
        adding: the name of a function that takes one more derivative.

    Returns:
        Their number, and that of calls of such functions around.
    """
    from torch._dynamo.symbolic_convert import InliningInstructionTranslator

    tracers: dict[int, Any] = {}  # the innermost first
    frame: Any = sys._getframe()
    while frame is not None:
        tracer = frame.f_locals.get("self")
        if isinstance(tracer, InliningInstructionTranslator):
            tracers[id(tracer)] = tracer
        frame = frame.f_back
    calls = [t for t in tracers.values() if t.f_code.co_name == "__call__"]
    objects = [getattr(t.symbolic_locals["self"].realize(), "value", None) for t in calls]
    around = sum([value is objects[0] for value in objects[1:]])
    return around, sum([t.f_code.co_name == adding for t in tracers.values()])


@constant_in_traces
def differentiated_outside() -> bool:
    """Whether more derivatives may be taken of a graph than the transforms in its trace.

    That is so if one of its inputs requires grad, or if it goes backward itself. Only while dynamo
    traces.
    """
    from torch._dynamo import config
    from torch._dynamo.symbolic_convert import InstructionTranslator

    if config.trace_autograd_ops:
        return True
    tracers = InstructionTranslator.current_tx().output.tracers
    inputs = [node for t in tracers for node in t.graph.find_nodes(op="placeholder")]
    values = [node.meta.get("example_value") for node in inputs]
    return any([isinstance(value, Tensor) and value.requires_grad for value in values])


def restart_trace(reason: str) -> NoReturn:
    """Ends dynamo's present trace and begins it anew, with the present state of the process.

    A trace goes on with what it has read once, of a table of Python's say, and the graph is guarded
    by it. Only from a function that is constant in traces.
    """
    from torch._dynamo.exc import UnspecializeRestartAnalysis

    raise UnspecializeRestartAnalysis(restart_reason=reason)


def end_graph(reason: str) -> None:
    """Ends the graph that dynamo traces; where there may be only one, an error with the reason."""
    torch._dynamo.graph_break(msg=reason)


def hides_own_error(error: BaseException) -> bool:
    """Whether dynamo raised an error of its own in place of one that the function raises.

    It does so for an operator that refuses its inputs while dynamo computes the shapes, and for
    every exception of the function itself but a ``RuntimeError``, which dynamo's is, too, with its
    text. With such our own code refuses in a trace what eager code does, such as writes.
    """
    from torch._dynamo.exc import TorchRuntimeError, Unsupported

    observed = getattr(error, "gb_type", None) == "Observed exception"
    if isinstance(error, Unsupported) and observed:
        return "raised exception RuntimeError" not in str(error)
    return isinstance(error, TorchRuntimeError)


def run_as_it_is(function: Callable[..., Any]) -> None:
    """Has dynamo run a function, and all it calls, as ordinary Python; a trace ends before it.

    As ``torch.compiler.disable``, without loading dynamo or wrapping the function.
    """
    frames = torch._C._dynamo.eval_frame
    skip = frames._FrameAction.SKIP
    code = function.__code__
    frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, skip))
    vars(function)["_torchdynamo_disable"] = True


def tensor_check(
    tensors: Sequence[Tensor],
    sizes: Sequence[Sequence[int | None]],
    strides: Sequence[Sequence[int | None]],
) -> Any:
    """Dynamo's own check of the metadata of several tensors at once, in C++.

    ``check(*tensors)`` compares type, dispatch keys, dtype, device, requires_grad under the
    present grad mode, rank, and those sizes and strides that are not ``None``; it is false if a
    tensor comes twice. ``check_verbose(*tensors, tensor_check_names=...)`` says what differs.
    """
    lists: Any = [list(size) for size in sizes], [list(stride) for stride in strides]
    return torch._C._dynamo.guards.TensorGuards(
        *tensors, dynamic_dims_sizes=lists[0], dynamic_dims_strides=lists[1]
    )


def recompile_limit() -> int:
    """How many graphs torch makes for one function."""
    from torch._dynamo import config

    return config.recompile_limit


compiled_entries: Callable[[CodeType], Sequence[Any]] = (
    torch._C._dynamo.eval_frame._debug_get_cache_entry_list
)
"""What dynamo has made of a code object: entries of a guard and a code."""


class Trace(NamedTuple):
    """A function that dynamo traced and whose graph was compiled.

    Attributes:
        name: of its code, ``torch_dynamo_resume_in_..._at_...`` for what follows a graph break.
        file: where the code stands.
        line: where it begins there.
        reason: why an earlier graph of this code did not fit; empty without one.
    """

    name: str
    file: str
    line: int
    reason: str


def _reason(text: str) -> str:
    """The guard of an earlier graph that failed, without the number of that graph."""
    text = text.partition("\nUser stack trace")[0].strip()
    return re.sub(r"^\d+/\d+: ", "", text)


class TraceLog:
    """What dynamo traces in this process from now on, as its own metrics tell."""

    _MOST = 1_000_000  # torch keeps 64, of all that was ever traced

    def __init__(self) -> None:
        from torch._dynamo import utils

        self._limit = utils._compilation_metrics.maxlen
        utils.set_compilation_metrics_limit(self._MOST)
        self._before = utils.get_compilation_metrics()

    def traces(self) -> list[Trace]:
        """The traces since then that did not fail."""
        from torch._dynamo import utils

        before = {id(one) for one in self._before}
        return [
            Trace(one.co_name, one.co_filename or "", one.co_firstlineno or 0,
                  _reason(one.recompile_reason or ""))
            for one in utils.get_compilation_metrics()
            if id(one) not in before and one.co_name is not None and one.fail_type is None
        ]  # fmt: skip

    def end(self) -> None:
        """Has torch keep as many as before."""
        from torch._dynamo import utils

        if self._limit is not None:
            utils.set_compilation_metrics_limit(self._limit)


def source_value(source: Any, roots: dict[str, Any], cache: dict[Any, Any]) -> Any:
    """What a place that dynamo has guarded holds now; ``roots`` are the globals and the locals."""
    from torch._dynamo.guards import _get_closure_vars

    return source.get_value(roots, _get_closure_vars(), cache)


def global_name(source: Any) -> str | None:
    """The name of the global that a place is; ``None`` for any other place."""
    from torch._dynamo.source import GlobalSource

    return source.global_name if type(source) is GlobalSource else None


def class_of_dict(source: Any) -> Any:
    """The place of the class whose attributes a place is, as a dict; ``None`` for any other."""
    from torch._dynamo.source import TypeDictSource

    return source.base if type(source) is TypeDictSource else None


def forget_views_of_arrays(entries: Sequence[Any]) -> None:
    """Has guards of NumPy's arrays forget the tensors that they were written for.

    Dynamo guards a new tensor each time, and writes all guards once more for those that a filter
    keeps; there it asks whether the two are the same, which fails (torch 2.13 and 2.14).
    """
    from torch._dynamo.source import NumpyTensorSource

    for entry in entries:
        if type(entry.orig_guard.originating_source) is NumpyTensorSource:
            entry.orig_guard.obj_weakref = None


def is_default(source: Any) -> bool:
    """Whether a place is among the defaults of a function's parameters."""
    from torch._dynamo.source import DefaultsSource

    return type(source) is DefaultsSource or getattr(source, "member", "") in _DEFAULTS


_DEFAULTS = ("__defaults__", "__kwdefaults__")


def plain_frames() -> Callable[[], bool]:
    """A function that tells whether nothing but ordinary running is asked of dynamo."""
    from torch._dynamo import eval_frame

    callback = torch._C._dynamo.eval_frame.get_eval_frame_callback
    return lambda: callback() is None and eval_frame._stance.stance == "default"


@contextlib.contextmanager
def guarded_closures() -> Iterator[None]:
    """Has dynamo guard the classes that its traces in this thread find in closures.

    It guards a class that a global or an attribute leads to, but none that is reached through the
    closure of a function, because of the cell ``__class__`` that ``super()`` reads (torch 2.13 and
    2.14). Another class in such a place would go unseen.
    """
    _guard_closures()
    before = getattr(_closures, "guarded", False)
    _closures.guarded = True
    try:
        yield
    finally:
        _closures.guarded = before


_closures = threading.local()


@functools.cache
def _guard_closures() -> None:
    from torch._dynamo import variables

    builder: Any = variables.builder
    unguarded = builder.is_from_closure_source

    def is_unguarded(source: Any) -> bool:
        if getattr(_closures, "guarded", False):
            return getattr(source, "freevar_name", None) == "__class__"
        found: bool = unguarded(source)
        return found

    builder.is_from_closure_source = is_unguarded


def trace_reporter(note: Callable[[bool, frozenset[CodeType]], None]) -> tuple[Any, Any]:
    """What a traced function calls, and with what, to have ``note`` told what it did.

    Call it last. ``note`` gets whether an input was written to, for dynamo traces with stand-ins
    for tensors, which count that; and the code it traced.
    """
    from torch._dynamo.comptime import comptime

    def look(context: Any) -> None:
        values = [
            node.meta.get("example_value") for node in context.graph().find_nodes(op="placeholder")
        ]
        tensors = [value for value in values if isinstance(value, Tensor)]
        codes = torch._guards.TracingContext.get_traced_code() or ()
        note(
            any([tensor.is_inference() or tensor._version for tensor in tensors]),
            frozenset(codes),
        )

    return comptime, look


def global_state() -> str:
    """The modes of torch that dynamo guards (gradients, autocast, threads, ...), as JSON."""
    state: str = _state_guard().__getstate__()
    return state


def state_check(state: str) -> Callable[[], bool]:
    """What tells whether these modes are as they were, in C++."""
    guard = _state_guard()
    guard.__setstate__(state)
    check: Callable[[], bool] = guard.check
    return check


def _state_guard() -> Any:
    return torch._C._dynamo.guards.GlobalStateGuard()
