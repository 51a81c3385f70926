"""Reverse-mode derivatives by ``torch.func``: inside other transforms and while dynamo traces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import (
    autograd,
    checkpoints,
    collectives,
    dynamo,
    functions,
    functorch,
    modes,
    once,
)
from parallax.func.backward_formulas import differentiable_within, gradients_again
from parallax.func.call import Call
from parallax.func.results import open_tensors
from parallax.func.traced_formulas import replace_what_is_wrong
from parallax.func.underivable import derivative_runs, refuse_what_has_no_derivative

__all__ = ["Finish", "Pullback", "applied", "gradient_by_functorch", "pullback_by_functorch",
           "through"]  # fmt: skip

Finish = Callable[[Any], tuple[Any, Any]]
Pullback = Callable[[Sequence[Tensor]], list[Tensor]]


def through(
    call: Call, finish: Callable[[Any], tuple[Any, Any]], levels: int = 1
) -> tuple[Callable[..., Any], Callable[[Sequence[Tensor]], Any]]:
    """A call as a function of tensors for a transform of ``torch.func``.

    Args:
        call: what is called.
        finish: takes what the function returned to what is transformed, and something beside it.
        levels: how many transforms there are, one in the other; 0 for an expansion.

    Returns:
        A function of the leaves that move to ``(transformed, tensors)``; and one of these tensors,
        as they come out of the transform, to what came beside.
    """
    if dynamo.is_compiling():
        functions.keep_backwards()
        replace_what_is_wrong()
    refuse_what_has_no_derivative()
    inner, nesting = call.nested(levels)
    still = inner.still() if levels and not dynamo.is_compiling() else []
    closes: list[Any] = []

    def flat(*values: Tensor) -> tuple[Any, list[Tensor]]:
        args = list(inner.args)
        for place, arg in still:  # as torch.func hands them over: the function may write into them
            args[place] = functorch.wrapped_here(arg)
        with derivative_runs():
            out, aux = finish(inner.at(values, args))
        if dynamo.is_compiling():
            checkpoints.refuse_traced_checkpoint()
        elif isinstance(out, Tensor) and out.requires_grad and not autograd.connected(out):
            out = out.detach()
        elif levels:
            ends = [x for x in ([out] if isinstance(out, Tensor) else out) if isinstance(x, Tensor)]
            nodes = autograd.nodes_of(ends)
            once.refuse_second(nodes, values)
            if any([differentiable_within(x) for x in ends]):
                gradients_again(nodes)
        beside, close = open_tensors(aux, call.what)
        closes.append((close, len(beside)))
        return out, [*beside, *nesting.emitted()]

    def after(tensors: Sequence[Tensor]) -> Any:
        close, count = closes[0]
        nesting.relay(tensors[count:])
        return close(tensors[:count])

    return flat, after


def gradient_by_functorch(call: Call, finish: Finish) -> tuple[list[Tensor], Tensor, Any]:
    """As ``engines.gradient``."""
    flat, after = through(call, finish)
    if dynamo.is_compiling():
        grads, loss, beside = functorch.gradients_in_trace(flat, call.values)
    else:
        loss, pull, beside = applied(torch.func.vjp, flat, *call.values, has_aux=True)
        one = torch.ones_like(loss)
        try:
            grads = pull(one)
        except RuntimeError as error:
            if _differentiated_outside(loss) or not functorch.is_vmap_refusal(error):
                raise
            # Of the second derivative of batch norm torch 2.14 records no graph under vmap.
            grads = pull(one, create_graph=False)
    return collectives.gradients_placed(list(grads), call.values), loss, after(beside)


def _differentiated_outside(loss: Tensor) -> bool:
    """Whether a derivative can be taken of what is computed here, by a transform or the tape."""
    return (
        functorch.differentiating()
        or modes.forward_level_active()
        or functorch.innermost(loss).requires_grad
    )


def pullback_by_functorch(call: Call, finish: Finish) -> tuple[list[Tensor], Pullback, Any]:
    """As ``engines.pullback``."""
    flat, after = through(call, finish)
    outs, pull, beside = applied(torch.func.vjp, flat, *call.values, has_aux=True)

    def pull_by_functorch(cotangents: Sequence[Tensor]) -> list[Tensor]:
        if not dynamo.is_compiling() and functorch.vmap_active():
            # Some backward formulas write in place into what is made of a cotangent, which vmap
            # refuses where the cotangent is one for all.
            pairs = zip(cotangents, outs, strict=True)
            cotangents = [c + torch.zeros_like(out) for c, out in pairs]
        return collectives.gradients_placed(list(pull(list(cotangents))), call.values)

    return list(outs), pull_by_functorch, after(beside)


def applied(transform: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a transform of ``torch.func`` returns; its refusal of a checkpoint names the remedy."""
    if dynamo.is_compiling():
        return transform(*args, **options)
    try:
        if checkpoints.hooked():
            with checkpoints.hooks_aside():
                return transform(*args, **options)
        return transform(*args, **options)
    except RuntimeError as error:
        if checkpoints.is_hook_refusal(error):
            raise RuntimeError(checkpoints.NO_CHECKPOINT) from error
        raise
