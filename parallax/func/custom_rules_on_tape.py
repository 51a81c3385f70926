"""A function with a derivative that somebody has written, on autograd's tape.

No transform is active, so that the function runs where no derivative sees it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax.core.module_structure import leaves_of
from parallax.core.nodes import is_module
from parallax.func.custom_rules import Rule
from parallax.func.differentiated import INEXACT, is_inexact
from parallax.func.framed import LONE

__all__ = ["OnTape"]


class OnTape(torch.autograd.Function):
    """The function that runs where no derivative sees it; with less, as no transform is active."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Tensor) -> Any:
        """The result, of which what is kept is saved."""
        if rule.beside:
            tensors = tensors[: -rule.beside]
        if rule.watched:
            outs, kept = rule.run(rule.args, tensors)
            return _kept(ctx, rule, tensors, outs, kept)
        found = rule.forward(*rule.args)  # which hold the very tensors
        known = _row_of(rule.args, found)
        if known is not None:
            row, others = known
            ctx.call = rule, tensors, row
            ctx.save_for_backward(*tensors, *others)
            rule.outs = LONE
            rule.count = 1
            return (found[0],)
        outs, kept = rule.taken(found, rule.args, tensors)
        return _kept(ctx, rule, tensors, outs, kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The cotangents of the arguments."""
        rule, tensors, row = ctx.call
        saved = ctx.saved_tensors
        if row is None:
            grads = rule.pull(ctx.outs, _again(rule, saved, len(tensors)), cotangents)
        elif torch.is_grad_enabled() and _differentiated(saved, len(tensors)):
            grads = rule.pull([True], rule.again(saved[: len(tensors)]), cotangents)
        else:
            found = rule.backward(_built(row, rule, tensors, saved), cotangents[0])
            grads = _fitting(rule, found, tensors) or rule.opened(found)
        return (None, *grads, *[None] * rule.beside) if rule.beside else (None, *grads)


def _kept(
    ctx: Any, rule: Rule, tensors: Sequence[Tensor], outs: Sequence[Tensor], kept: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The tensors of the result; saves those of the arguments, and of what is kept."""
    rule.find(tensors, kept)
    ctx.call = rule, tensors, None
    ctx.outs = [is_inexact(x) for x in outs]
    others = [x for x, k in zip(kept, rule.sources, strict=True) if k is None]
    ctx.save_for_backward(*tensors, *others)
    return tuple(outs)


def _again(rule: Rule, saved: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """The tensors of what is kept; computed once more where a derivative is taken of them."""
    if torch.is_grad_enabled() and _differentiated(saved, count):
        return rule.again(saved[:count])
    return rule.together(saved, saved[count:])


def _differentiated(saved: Sequence[Tensor], count: int) -> bool:
    return any([x.requires_grad for x in saved[:count]])


class _Row(NamedTuple):
    """Where what is kept comes from, if that is arguments and tensors: one, or a tuple of them.

    Attributes:
        places: of each the place among the arguments, -1 for a tensor that is none.
        whole: what is kept, unless a tensor is among it that is no argument: it may be the result,
            which holds this.
        lone: whether it is one, and no tuple.
    """

    places: Sequence[int]
    whole: Any
    lone: bool


def _built(row: _Row, rule: Rule, tensors: Sequence[Tensor], saved: Sequence[Tensor]) -> Any:
    """What is kept, of what was saved: the tensors of the arguments, and the others."""
    places, whole, lone = row
    if whole is not None and all(map(operator.is_, tensors, saved)):
        return whole
    args, others = rule.around(saved[: len(tensors)]), iter(saved[len(tensors) :])
    items = [next(others) if place < 0 else args[place] for place in places]
    return items[0] if lone else tuple(items)


def _row_of(args: Sequence[Any], found: Any) -> tuple[_Row, list[Tensor]] | None:
    """The row of what is kept, and the tensors that are no argument; of a result that is a tensor.

    ``None`` for anything else.
    """
    if type(found) is not tuple or len(found) != 2:
        return None
    out, kept = found
    if type(out) is not Tensor or out.dtype not in INEXACT:
        return None
    lone = type(kept) is not tuple
    places: list[int] = []
    others: list[Tensor] = []
    for item in (kept,) if lone else kept:
        for place, arg in enumerate(args):
            if item is arg:
                places.append(place)
                break
        else:
            if type(item) is not Tensor:
                return None
            places.append(-1)
            others.append(item)
    return _Row(places, None if others else kept, lone), others


def _fitting(rule: Rule, found: Any, tensors: Sequence[Tensor]) -> list[Tensor | None] | None:
    """The tensors of cotangents that are like the arguments; ``None`` for any others.

    Integers have one here, too, which torch leaves out.
    """
    if type(found) is not tuple or len(found) != len(rule.args):
        return None
    grads: list[Tensor | None] = []
    for arg, grad in zip(rule.args, found, strict=True):
        kind = type(grad)
        if kind is not type(arg):
            return None
        if kind is Tensor:
            grads.append(grad)
        elif is_module(grad) and grad._spec is arg._spec:
            grads += leaves_of(grad)
        else:
            return None
    if len(grads) != len(tensors):  # keys have no cotangents
        return None
    for grad, tensor in zip(grads, tensors, strict=True):
        if type(grad) is not Tensor or grad.shape != tensor.shape:
            return None
    return grads
