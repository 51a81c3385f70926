"""``cond``: one of two functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import effects, random
from parallax._compat import dynamo, flow, functorch, in_trace
from parallax._errors.arguments import answered
from parallax.func.arguments import name_of, short
from parallax.func.framed import check_functions, fitted, framed
from parallax.func.nesting import Nesting
from parallax.func.signatures import R

__all__ = ["check_pred", "cond"]


@answered("func.cond", "func.cond(pred, true_fn, false_fn, (x,))")
def cond(
    pred: Tensor | bool,
    true_fn: Callable[..., R],
    false_fn: Callable[..., R],
    operands: Sequence[Any] = (),
) -> R:
    """``true_fn(*operands)`` if ``pred``, otherwise ``false_fn(*operands)``.

    As ``torch.cond``, with modules and any tree for operands and results. In eager code, and where
    ``pred`` is a Python bool, it is an ``if``. In compiled code both functions are traced, and the
    one is run that ``pred`` says; they return one structure, with the same shapes and dtypes.
    Where ``pred`` differs between the members of a ``vmap`` both are run, and of each tensor the
    right one is taken. A compiled branch that draws from torch's own random state has no derivative
    in reverse mode; with keys it has one.

    Args:
        pred: a bool, or a tensor of one bool.
        true_fn: what to call if it is true.
        false_fn: what to call if it is false.
        operands: the arguments of both, as a tuple.

    Returns:
        What the chosen function returns.

    Raises:
        EffectError: if effects are collected where both functions are traced or run.
        TypeError: if ``pred`` is no bool, the functions are none, or both are traced or run and a
            leaf of a result is no tensor.
        ValueError: if both are traced or run and the results differ in their structure, shapes or
            dtypes; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.cond(torch.tensor(True), torch.sin, torch.cos, (torch.zeros(()),))
        tensor(0.)
    """
    check_functions("func.cond", true_fn=true_fn, false_fn=false_fn)
    what = f"func.cond({name_of(true_fn)}, {name_of(false_fn)})"
    check_pred(pred, what, "pred")
    if not isinstance(operands, (tuple, list)):
        raise TypeError(
            f"{what}: operands must be a tuple of arguments, got {short(operands)}. "
            f"For one argument write (argument,)"
        )
    if isinstance(pred, bool):
        return true_fn(*operands) if pred else false_fn(*operands)
    if dynamo.is_compiling():
        _refuse_effects((true_fn, false_fn), operands, what)
        traced: R = _traced(pred, true_fn, false_fn, operands, what)
        return traced
    if functorch.is_mapped_within(pred):
        _refuse_effects((true_fn, false_fn), operands, what)
        mixed: R = _both(pred, true_fn, false_fn, operands, what)
        return mixed
    return true_fn(*operands) if pred else false_fn(*operands)


def check_pred(pred: Any, what: str, role: str) -> None:
    """Raises a ``TypeError`` unless a value is a bool or a tensor of one bool."""
    if isinstance(pred, bool):
        return
    if not isinstance(pred, Tensor):
        raise TypeError(
            f"{what}: {role} must be a bool or a tensor of one bool, got {short(pred)}. "
            f"Write a comparison: x.sum() > 0"
        )
    if pred.dtype is not torch.bool or pred.dim():
        raise TypeError(
            f"{what}: {role} must be a tensor of one bool, got one of shape {tuple(pred.shape)} "
            f"and dtype {pred.dtype}. Write a comparison: x.sum() > 0, or (x > 0).all()"
        )


def _refuse_effects(functions: Sequence[Any], operands: Sequence[Any], what: str) -> None:
    for function in functions:
        if Nesting(function, operands, {}).pairs:
            raise effects.EffectError(
                f"{what}: effects cannot be collected here, as both functions are traced or run. "
                f"Return new buffers beside the result instead, or collect within the functions: "
                f"effects.collect(fn)(module, x)"
            )


def _both(pred: Tensor, true_fn: Any, false_fn: Any, operands: Sequence[Any], what: str) -> Any:
    """Runs both, and takes of each member what ``pred`` says."""
    result = true_fn(*operands)
    tensors, frame = framed(result, what, "the result of true_fn")
    with random.reuse():  # no member gets the numbers of both
        other = false_fn(*operands)
    others = fitted(other, result, tensors, frame, what, "the result of false_fn")
    return frame.build([torch.where(pred, a, b) for a, b in zip(tensors, others, strict=True)])


def _traced(pred: Tensor, true_fn: Any, false_fn: Any, operands: Sequence[Any], what: str) -> Any:
    """Traces both as one operator."""

    def body_of(function: Any, role: str) -> Any:
        def body() -> tuple[Any, Any]:
            tensors, frame = framed(function(*operands), what, role)
            in_trace.at_trace()(_reply_kinds)
            return tuple([x.clone() for x in tensors]), (frame, in_trace.replied())

        return body

    bodies = body_of(true_fn, "the result of true_fn"), body_of(false_fn, "the result of false_fn")
    found, (frame, shapes), (other, others) = flow.cond(pred, *bodies)
    if not frame.is_like(other):
        raise ValueError(
            f"{what}: true_fn and false_fn return different structures. Return the same classes, "
            f"keys, constants and holes from both"
        )
    for one, two in zip(shapes, others, strict=True):
        if one != two:
            raise ValueError(
                f"{what}: true_fn returns a tensor of shape {one[0]} and dtype {one[1]}, "
                f"and false_fn one of {two[0]} and {two[1]} in its place. Return the same "
                f"shapes and dtypes from both"
            )
    return frame.build(found)


def _reply_kinds(context: Any) -> None:
    """Replies the shapes and dtypes of the local ``tensors``, as texts.

    A size may be a symbol of a branch's graph, with which nothing can be computed outside.
    """
    found: Any = in_trace.tensors_of(context, "tensors")
    kinds = [(str(tuple(one.value.shape)), str(one.value.dtype)) for one in found]
    in_trace.reply(context, tuple(kinds))
