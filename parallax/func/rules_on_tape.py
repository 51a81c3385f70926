"""A function with a derivative that somebody has written, on autograd's tape.

No transform is active, so that the function runs where no derivative sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax.func.framed import LONE
from parallax.func.holes import is_inexact
from parallax.func.rules import Rule

__all__ = ["OnTape"]


class OnTape(torch.autograd.Function):
    """The function that runs where no derivative sees it; with less, as no transform is active."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The result, of which what is kept is saved."""
        if rule.beside:
            tensors = tensors[: -rule.beside]
        if rule.watched:
            outs, kept = rule.run(rule.args, tensors)
            return _kept(ctx, rule, tensors, outs, kept)
        found = rule.forward(*rule.args)  # which hold the very tensors
        row = _plain_row(found)
        if row is not None:
            ctx.rule, ctx.outs, ctx.lone = rule, None, type(found[1]) is Tensor
            ctx.save_for_backward(*tensors, *row)
            rule.outs = LONE
            rule.count = 1
            return (found[0],)
        outs, kept = rule.taken(found, rule.args, tensors)
        return _kept(ctx, rule, tensors, outs, kept)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """The cotangents of the arguments."""
        rule: Rule = ctx.rule
        saved = ctx.saved_tensors
        count = len(ctx.needs_input_grad) - 1 - rule.beside
        rest = [None] * rule.beside
        if ctx.outs is None:
            return (None, *_pulled(rule, saved, count, ctx.lone, cotangents[0]), *rest)
        if torch.is_grad_enabled() and any([x.requires_grad for x in saved[:count]]):
            kept: Sequence[Tensor] = rule.again(saved[:count])
        else:
            kept = rule.together(saved, saved[count:])
        return (None, *rule.pull(ctx.outs, kept, cotangents), *rest)


def _kept(
    ctx: Any, rule: Rule, tensors: Sequence[Tensor], outs: Sequence[Tensor], kept: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The tensors of the result; saves those of the arguments, and of what is kept."""
    rule.find(tensors, kept)
    ctx.rule = rule
    ctx.outs = [is_inexact(x) for x in outs]
    others = [x for x, k in zip(kept, rule.sources, strict=True) if k is None]
    ctx.save_for_backward(*tensors, *others)
    return tuple(outs)


def _plain_row(found: Any) -> tuple[Tensor, ...] | None:
    """What is kept, if that is tensors and the result is one; ``None`` for anything else."""
    if type(found) is not tuple or len(found) != 2:
        return None
    out, kept = found
    if type(out) is not Tensor or not is_inexact(out):
        return None
    if type(kept) is Tensor:
        return (kept,)
    if type(kept) is tuple and all([type(item) is Tensor for item in kept]):
        return kept
    return None


def _pulled(
    rule: Rule, saved: Sequence[Tensor], count: int, lone: bool, cotangent: Tensor
) -> Sequence[Tensor | None]:
    """The cotangents of the arguments, where ``_plain_row`` had what is kept."""
    kept = saved[count:]
    if torch.is_grad_enabled() and any([x.requires_grad for x in saved[:count]]):
        return rule.pull([True], rule.again(saved[:count]), [cotangent])
    found = rule.backward(kept[0] if lone else kept, cotangent)
    if type(found) is tuple and len(found) == count == len(rule.args):
        pairs = zip(found, rule.args, strict=True)
        if all([type(x) is type(y) is Tensor and x.shape == y.shape for x, y in pairs]):
            return found  # torch leaves out those of integers
    return rule.opened(found)
