"""Loops, branches, checkpoints that dynamo traces into operators: ``func.scan`` and the others.

This file is what eager code may import; ``flow_operator``, which loads dynamo, is how it is done.
What a body returns is ``(tensors, constants)``: tensors that are no argument and none twice, and
constants about them, such as the structure of the tree that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from parallax._compat.dynamo import constant_in_traces
from parallax._compat.opaque import constant_while_tracing, real

Body = Callable[..., tuple[Any, Any]]


@constant_in_traces
def _operators() -> Any:
    from parallax._compat import flow_operator  # imports dynamo, which runs already

    operators = flow_operator
    return operators.scan, operators.cond, operators.while_loop, operators.recompute


def scan(
    body: Body, carry: Sequence[Tensor], stacks: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Any]:
    """Calls ``body(*carry, *rows)`` for each row of the stacks; only while dynamo traces.

    Args:
        body: returns the next carry, of the same shapes and dtypes, and what is stacked.
        carry: the first carry.
        stacks: what is looped over, in dimension 0.

    Returns:
        The last carry and the stacks; and the constants of the body.
    """
    firsts = [stack[0] for stack in stacks]
    return _operators()[0](  # type: ignore[no-any-return]  # dynamo knows what it is
        body, *carry, *firsts, *stacks, carried=len(carry), rows=len(stacks)
    )


def cond(pred: Tensor, true_body: Body, false_body: Body) -> tuple[Sequence[Tensor], Any, Any]:
    """Calls one of two bodies; only while dynamo traces.

    Returns:
        What it returned; and the constants of both.
    """
    return _operators()[1](true_body, false_body, pred)  # type: ignore[no-any-return]  # as above


def while_loop(
    goes_on: Body, body: Body, carry: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Any, Any]:
    """Calls ``body(*carry)`` as long as ``goes_on(*carry)``; only while dynamo traces.

    Returns:
        The last carry; and the constants of both.
    """
    return _operators()[2](goes_on, body, *carry)  # type: ignore[no-any-return]  # as above


@constant_while_tracing
class KeepPolicy:
    """Which results of operators a checkpoint keeps, as a constant of a trace.

    Attributes:
        policy: a tuple of operators, a function, or ``None`` for no result.
    """

    __slots__ = ("policy",)

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeepPolicy):
            return False
        both = type(self.policy) is type(other.policy) is tuple
        return bool(self.policy == other.policy) if both else self.policy is other.policy

    def __hash__(self) -> int:
        return hash(self.policy if type(self.policy) is tuple else id(self.policy))

    def __fx_repr__(self) -> tuple[str, dict[str, Any]]:
        # A graph takes the name of one for all that equal it.
        name = f"parallax_policy_{hash(self) & 0xFFFFFFFF}"
        return name, {name: self}


@real
def keep_policy(given: Any) -> KeepPolicy:
    """The policy that a user gives: a list of operators, a function or ``None``."""
    return KeepPolicy(tuple(given) if isinstance(given, list) else given)


def checkpoint(
    body: Body, operands: Sequence[Tensor], policy: KeepPolicy
) -> tuple[Sequence[Tensor], Any]:
    """Calls ``body(*operands)``, and once more for a derivative; only while dynamo traces.

    Args:
        body: returns tensors, and constants about them.
        operands: what it is called with.
        policy: which results of operators are kept.

    Returns:
        What it returned; and its constants.
    """
    return _operators()[3](body, *operands, policy=policy)  # type: ignore[no-any-return]  # as above


@constant_in_traces
def _rule() -> Any:
    from parallax._compat.rule_operator import rule  # as above

    return rule


def custom_derivative(
    body: Body,
    arguments: Sequence[Tensor],
    results: Sequence[Tensor],
    kept: Sequence[Tensor] | None,
) -> Sequence[Tensor]:
    """The results, with a derivative by the arguments; only while dynamo traces.

    Args:
        body: takes cotangents of the results and what is kept to cotangents of some arguments, and
            says of each argument whether it has one.
        arguments: what the results are differentiated with respect to.
        results: what was computed, without a graph.
        kept: what the body needs; ``None`` for the results themselves, with this derivative.
    """
    plan = {"arguments": len(arguments), "results": len(results), "own": kept is None}
    needed = results if kept is None else kept
    return _rule()(body, *arguments, *results, *needed, **plan)  # type: ignore[no-any-return]  # dynamo knows what it is


class Engine(NamedTuple):
    """What is made of a function that is expanded, as constants of a trace name it.

    Attributes:
        run: takes the function, where it is expanded, the series that are given, and which of all
            series these are, to tensors; behind them is what came beside.
        like: takes stand-ins for what the function returns, and the order, to some for the tensors.
    """

    run: Callable[..., Sequence[Tensor]]
    like: Callable[[Sequence[Tensor], int], Sequence[Tensor]]


ENGINES: dict[str, Engine] = {}
"""The engines by name; ``func.taylor`` fills it in."""


@constant_in_traces
def _expand() -> Any:
    from parallax._compat.taylor_operator import expand  # as above

    return expand


def taylor_expansion(
    body: Body, values: Sequence[Tensor], series: Sequence[Tensor], **constants: Any
) -> tuple[Sequence[Tensor], Any]:
    """The Taylor expansion of ``body(*values)``; only while dynamo traces.

    Args:
        body: returns tensors, and how many of them are expanded with what it says.
        values: where it is expanded.
        series: the derivatives of the values that are not zero.
        **constants: ``engine``, its name; ``order``; and ``present``, which series are given.

    Returns:
        The tensors of the engine; and the constants of the body.
    """
    counts = {"given": len(values), "series": len(series)}
    return _expand()(body, *values, *series, **counts, **constants)  # type: ignore[no-any-return]  # as above
