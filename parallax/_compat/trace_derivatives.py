"""Which derivatives of what dynamo traces are taken through torch's operators.

Transforms that differentiate stand one in the other, counted from 1; 0 is autograd's tape around
the trace. A rule that somebody has written is the derivative for some of them: those do not look
at what it computes.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch._ops import HigherOrderOperator

from parallax._compat import in_trace
from parallax._compat.functorch import levels_that_differentiate

__all__ = ["differentiated", "forward_of_rule", "is_noted", "is_taken", "of_rule"]


class _Taken(NamedTuple):
    """What is known at one place of a trace.

    Attributes:
        noted: whether a transform of ours is around.
        by_rule: those for which a rule is the derivative.
    """

    noted: bool
    by_rule: frozenset[int]


_NOTHING = _Taken(False, frozenset())


class _Within:
    """What a traced function enters where something is known."""

    def __init__(self, change: Callable[[Any], None]) -> None:
        self._change = change

    def __enter__(self) -> None:
        in_trace.at_trace()(self._change)

    def __exit__(self, *_: object) -> None:
        in_trace.at_trace()(_leave)


def differentiated() -> _Within:
    """Within it a function is traced that a transform of ours differentiates."""
    return _Within(_differentiated)


def forward_of_rule() -> _Within:
    """Within it a function is traced whose derivative a rule is, for everybody around."""
    return _Within(_forward_of_rule)


def of_rule() -> _Within:
    """Within it a rule is traced: the derivative for the innermost transform that lacks one."""
    return _Within(_of_rule)


def is_taken(otherwise: Callable[[], bool]) -> bool:
    """Whether a derivative of ours is taken of an operator that runs now, by its own derivative.

    Call it only where somebody takes one: in a trace it guards that this one is not ours.

    Args:
        otherwise: whether one of ours is taken outside of a trace, or around it.
    """
    output = _traced()
    if output is None:
        return otherwise()
    # What is compiled now, or runs again, has been asked about.
    if output.should_exit or _runs_again(output):
        return False
    known = _known(output)
    noted, by_rule = known[-1] if known else _NOTHING
    if levels_that_differentiate() in by_rule:
        return False
    if noted or otherwise():
        return True
    _guard_against(output, otherwise)
    return False


def is_noted(output: Any) -> bool:
    """Whether a transform of ours is around what is traced now for a graph."""
    known = _known(output)
    return bool(known) and known[-1].noted


def _traced() -> Any:
    """The graph that dynamo traces in this thread, or ``None``."""
    convert = sys.modules.get("torch._dynamo.symbolic_convert")
    tx = None if convert is None else getattr(convert.tls, "current_tx", None)
    return None if tx is None else tx.output


def _runs_again(output: Any) -> bool:
    """Whether dynamo does not run an operator that it has met, but what was traced of a function.

    It does so for a higher-order operator, whose results need stand-ins, and for a backward.
    """
    node = next(reversed(output.current_tracer.graph.nodes))
    if node.op not in ("call_function", "call_method"):
        return True
    higher = isinstance(node.target, HigherOrderOperator)
    return higher or getattr(node.target, "__module__", None) in _BACKWARD


_BACKWARD = (torch.autograd.__name__, torch._functorch.eager_transforms.__name__)


def _guard_against(output: Any, otherwise: Callable[[], bool]) -> None:
    """Has the graph used only as long as this is not so."""
    from torch._dynamo.source import GlobalStateSource

    def guard_against(builder: Any, guard: Any) -> None:
        builder.guard_manager.root.add_lambda_guard(
            lambda _: not otherwise(), ["no derivative of parallax.func"], guard.user_stack
        )

    guards = output.tracing_context.guards_context.dynamo_guards
    guards.add(torch._guards.Guard(GlobalStateSource(), guard_against))


def _known(output: Any) -> list[_Taken]:
    """What is known of a graph at the places that the trace has entered."""
    return getattr(output, "parallax_taken", [])


def _enter(context: Any, change: Callable[[_Taken], _Taken]) -> None:
    output = in_trace.graph_of(context)
    known = output.parallax_taken = _known(output)
    known.append(change(known[-1] if known else _NOTHING))


def _leave(context: Any) -> None:
    _known(in_trace.graph_of(context)).pop()


def _differentiated(context: Any) -> None:
    _enter(context, lambda known: _Taken(True, known.by_rule))


def _forward_of_rule(context: Any) -> None:
    count = levels_that_differentiate()
    _enter(context, lambda known: _Taken(known.noted, frozenset(range(count + 1))))


def _of_rule(context: Any) -> None:
    def changed(known: _Taken) -> _Taken:
        left = set(range(levels_that_differentiate() + 1)) - known.by_rule
        return _Taken(known.noted, known.by_rule | {max(left, default=0)})

    _enter(context, changed)
