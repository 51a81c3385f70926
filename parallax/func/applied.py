"""Functions whose derivative somebody has written: one autograd function for all of them.

In eager code the function runs where no derivative sees it, and what its author keeps for the
derivative is saved. A second derivative goes through what is kept, so it is computed once more
there. In compiled code everything is recorded, as what nobody asks for is not compiled, and one
operator puts the derivative in the place of the recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import (
    dynamo,
    flow,
    functorch,
    in_trace,
    modes,
    trace_captures,
    trace_derivatives,
)
from parallax.func.custom_rules import DETACH, Rule
from parallax.func.custom_rules_on_tape import OnTape
from parallax.func.differentiated import is_inexact

__all__ = ["apply", "differentiable", "is_deep"]


def apply(
    rule: Rule, tensors: Sequence[Tensor], plain: Callable[..., Any] | None = None,
    args: Sequence[Any] = (),
) -> Any:  # fmt: skip
    """The result of the call at the tensors of its arguments, with the derivative of the rule.

    Args:
        rule: the call.
        tensors: those in its arguments.
        plain: is called in its place where nobody can ask for a derivative.
        args: what it is called with.
    """
    if modes.tape_is_exact():
        if plain is not None and not _recording(tensors):
            return plain(*args)
        beside = _look(rule) if rule.reached is not None else ()
        found: Any = OnTape.apply(rule, *tensors, *beside)  # type: ignore[no-untyped-call]  # torch's
        return rule.outs.build(found)
    if dynamo.is_compiling():
        return _traced(rule, tensors)
    if plain is not None and not (torch.is_grad_enabled() or functorch.differentiating()):
        return plain(*args)  # such as in a rule that calls its own function, under vmap
    _look(rule)
    try:
        found = _Ruled.apply(rule, *tensors)  # type: ignore[no-untyped-call]  # torch's
    except RuntimeError as error:
        if not functorch.is_wrapper_refusal(error):
            raise
        raise TypeError(rule.refusal("mapped by vmap, or differentiated")) from error
    return rule.outs.build(found[: rule.count])


def _look(rule: Rule) -> Sequence[Tensor]:
    """Has what the function captures watched; what the derivative captures, where differentiated.

    That belongs to the graph: ``func.grad`` looks there for what is differentiated outside.
    """
    found = rule.reached and rule.reached.differentiated()
    if not found:
        return ()
    rule.watched, beside = found
    rule.beside = len(beside)
    return beside


def differentiable(tensors: Sequence[Tensor]) -> bool:
    """Whether somebody can ask for a derivative of what is computed of these tensors."""
    return _recording(tensors) if modes.tape_is_exact() else True


def is_deep() -> bool:
    """Whether a call in a trace stands within so many of itself that no derivative is left.

    A rule may call its own function, as those of JAX do. A trace looks at the derivatives of all
    orders at once, and would not end.
    """
    around, added = dynamo.calls_around("transposed")
    orders = sum(functorch.derivatives_running()) + int(dynamo.differentiated_outside())
    return around >= max(orders - added, 1)


def _recording(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors])


class _Ruled(torch.autograd.Function):
    """The same within transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        return rule.apart(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.rule = rule = inputs[0]
        ctx.outs = [is_inexact(x) for x in output[: rule.count]]
        saved = *inputs[1:], *output[rule.count :]
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        rule: Rule = ctx.rule
        count = sum([count for count, _ in rule.frames])
        # Transforms that ``bwd`` enters take the wrappers of one that has ended for their own.
        saved = [functorch.unwrapped_if_over(x) for x in ctx.saved_tensors]
        cotangents = tuple([functorch.unwrapped_if_over(x) for x in cotangents])
        tensors, others = saved[:count], saved[count:]
        if others and torch.is_grad_enabled() and any([x.requires_grad for x in tensors]):
            kept = rule.again(tensors)
        else:
            kept = rule.together(tensors, others)
        return (None, *rule.pull(ctx.outs, kept, cotangents[: rule.count]))

    @staticmethod
    def jvp(ctx: Any, *inputs: Any) -> Any:
        _, *tangents = inputs
        rule: Rule = ctx.rule
        if rule.push is None:
            raise NotImplementedError(rule.backward_only())
        count = len(tangents)
        found = rule.push(ctx.saved_tensors[:count], tangents)
        return (*found, *[None] * (len(ctx.saved_tensors) - count))


def _traced(rule: Rule, tensors: Sequence[Tensor]) -> Any:
    """The call as dynamo traces it: recorded, with an operator that has the derivative."""
    if functorch.derivatives_running()[1]:
        in_trace.at_trace()(trace_captures.reply_moved)
        if in_trace.replied():
            kind: type[Exception] = NotImplementedError
            text = rule.backward_only()
            in_trace.at_trace()(trace_captures.refuse)
    in_trace.at_trace()(trace_captures.reply_begin)
    begun = in_trace.replied()  # noqa: F841  # as below
    with trace_derivatives.forward_of_rule():
        outs, kept = rule.run(rule.args, tensors)
    if rule.reached is not None:
        in_trace.at_trace()(trace_captures.reply_captured)
        if in_trace.replied():
            kind = TypeError  # noqa: F841  # a local of the trace, as text
            text = rule.refusal("differentiated", DETACH)  # noqa: F841
            in_trace.at_trace()(trace_captures.refuse)
    flags = [is_inexact(x) for x in outs]
    count = len(outs)

    def body(*given: Tensor) -> tuple[Any, Any]:
        with trace_derivatives.of_rule():
            grads = rule.pull(flags, given[count:], given[:count])
        found = [grad for grad in grads if grad is not None]
        return tuple([x.clone() for x in found]), [grad is not None for grad in grads]

    return rule.outs.build(flow.custom_derivative(body, tensors, [x.detach() for x in outs], kept))
