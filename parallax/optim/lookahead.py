"""Lookahead: slow weights that follow the fast ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from parallax._compat import dynamo, functorch
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_at_least, check_fields
from parallax.optim.checks import check_state, gather, open_initialized, open_model
from parallax.optim.saved import Constants, Tensors, below, shaped
from parallax.optim.state import around
from parallax.tree.align import align

__all__ = ["Lookahead", "SlowWeights"]

T = TypeVar("T")


class SlowWeights(Module):
    """The state of ``Lookahead``.

    Attributes:
        model: the slow weights, with holes for what was never trained.
        count: how many steps were made, a tensor of no dimension.
    """

    model: Module
    count: Buffer

    def __as_saved__(self, constants: Constants, tensors: Tensors) -> SlowWeights:
        del constants
        model = shaped(self.model, below(tensors, "model"), self.count.device)
        return SlowWeights(model, self.count)


@dataclass(frozen=True)
class Lookahead:
    """Every ``k`` steps the model goes back a part of the way, to slow weights that follow it.

    A part of ``chain``, to stand after the optimizer. As Zhang et al. 2019: the slow weights move
    by ``alpha`` times the way from them to the model, and the model goes on from there. Those of a
    leaf that is trained only later begin where it is before its first step.

    Args:
        k: how many steps of the optimizer make one of the slow weights.
        alpha: how far the slow weights move, between 0 and 1.

    Raises:
        ValueError: if ``k`` is less than one, or ``alpha`` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt = optim.chain(optim.SGD(lr=1.0), optim.Lookahead(k=2, alpha=0.5))
        >>> point = Point(torch.zeros(1))
        >>> state = opt.init(point)
        >>> for _ in range(2):
        ...     point, state = opt.step(point, Point(torch.ones(1)), state)
        >>> point.at  # half of the way to -2
        tensor([-1.])
    """

    k: int = 5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_fields("Lookahead", self)
        check_at_least("Lookahead", "k", self.k, 1)
        if not 0 <= self.alpha <= 1:
            raise ValueError(
                f"Lookahead: alpha must be between 0 and 1, got {self.alpha}. "
                f"Write Lookahead(alpha=0.5)"
            )

    def init(self, model: Any) -> SlowWeights:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state: a copy of what is trained.
        """
        leaves, part = open_initialized("optim.Lookahead.init", model)
        rows = zip(leaves, part.trainable, strict=True)
        slow = [p.clone() if t and p is not None else None for p, t in rows]
        return SlowWeights(around(model, slow), torch.zeros((), dtype=torch.int32))

    def update(self, updates: T, state: SlowWeights, model: Any) -> tuple[T, SlowWeights]:
        """The update of one step.

        Args:
            updates: what the optimizer adds to the model.
            state: what ``init`` or the last ``update`` returned.
            model: the module before the step.

        Returns:
            What is to be added to the model instead, and the next state.
        """
        what = "optim.Lookahead.update"
        check_state(what, state, SlowWeights)
        leaves, part = open_model(what, model)
        chosen, given = gather(what, model, leaves, part, updates, "the updates")
        moves, slow = list(given), list(align(part, state.model))
        count = state.count + 1
        back = count % self.k == 0
        traced = dynamo.is_compiling() or functorch.transform_active()
        later = [k for k in chosen if slow[k] is None]
        for k in later:
            slow[k] = leaves[k].clone()
        if not traced and not bool(back):
            kept = around(model, slow) if later else state.model
            return updates, SlowWeights(kept, count)
        for k in chosen:
            param, move, old = leaves[k], moves[k], slow[k]
            new = old + self.alpha * (param + move - old)
            there = new - param
            if traced:
                here = back.to(param.device)
                new, there = torch.where(here, new, old), torch.where(here, there, move)
            slow[k], moves[k] = new.to(param.dtype), there.to(param.dtype)
        return around(model, moves), SlowWeights(around(model, slow), count)
