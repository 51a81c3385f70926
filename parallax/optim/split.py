"""``Split``: several optimizers for the parts of one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from parallax._errors.arguments import answered, shown
from parallax.core.module import Module
from parallax.core.registry import unflatten_module
from parallax.optim import groups as grouping
from parallax.optim.arguments import check_optimizer
from parallax.optim.checks import check_state, gather, open_model
from parallax.optim.choose import leaves_out_steps
from parallax.optim.derivatives import is_differentiable
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits

__all__ = ["Split", "Splits"]

M = TypeVar("M")


class Splits(Module):
    """The states of the optimizers of ``Split``.

    Attributes:
        states: one per optimizer, that of the rest first; ``None`` where it steps nothing.
        labels: per unique leaf of the model the index of its optimizer.

    Example:
        >>> from parallax import nn, optim
        >>> opt = optim.Split({"weight": optim.Muon()}, rest=optim.AdamW())
        >>> state: optim.Splits = opt.init(nn.Linear(2, 1).initialize(0))
        >>> len(state.states), state.labels
        (2, (1, 0))
    """

    states: tuple[Module | None, ...]
    labels: tuple[int, ...]


@hint_at_habits
class Split:
    """An optimizer for each part of a model, which is an optimizer too.

    Args:
        optimizers: conditions of ``tree.select`` to optimizers; a leaf that several conditions
            match goes to the first.
        rest: the optimizer of all other leaves; by default they stay as they are.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Dense(Module):
        ...     weight: Parameter
        ...     bias: Parameter
        >>> dense = Dense(torch.ones(2, 3), torch.ones(2))
        >>> opt = optim.Split({lambda path, p: p.ndim == 2: optim.Muon()}, rest=optim.AdamW())
        >>> state = opt.init(dense)
        >>> dense, state = opt.step(dense, Dense(torch.ones(2, 3), torch.ones(2)), state)
    """

    @answered("optim.Split", "optim.Split({'**.weight': optim.Muon()}, rest=optim.AdamW())")
    def __init__(self, optimizers: Mapping[Any, Any], rest: Any = None) -> None:
        given: Any = optimizers
        if not isinstance(given, Mapping) or not given:
            raise TypeError(
                f"Split takes a dict of conditions to optimizers, got {shown(optimizers)}. "
                f"Write optim.Split({{'**.weight': optim.Muon()}}, rest=optim.AdamW())"
            )
        for condition, opt in given.items():
            check_optimizer("Split", f"optimizers[{shown(condition)}]", opt)
        if rest is not None:
            check_optimizer("Split", "rest", rest)
        self.conditions = tuple([grouping.Group(grouping.settled(c), (), ()) for c in optimizers])
        self.optimizers: tuple[Any, ...] = (rest, *optimizers.values())

    @property
    def _leaves_out_steps(self) -> bool:
        return any([leaves_out_steps(opt) for opt in self.optimizers])

    @property
    def _differentiable(self) -> bool:
        return any([is_differentiable(opt) for opt in self.optimizers])

    def init(self, model: Any) -> Splits:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state.

        Raises:
            LookupError: if a condition matches nothing in the model.
        """
        leaves, part = open_model("optim.Split.init", model)
        labels = grouping.labels(self.conditions, model, len(leaves), "optim.Split.init")
        states: list[Any] = []
        for number, opt in enumerate(self.optimizers):
            mine = [p if k == number else None for p, k in zip(leaves, labels, strict=True)]
            if opt is None or all([leaf is None for leaf in mine]):
                states.append(None)
            else:
                states.append(opt.init(unflatten_module(part, mine, None)))
        return Splits(tuple(states), labels)

    def step(self, model: M, grads: Any, state: Splits, donate: bool = False) -> tuple[M, Splits]:
        """A step of every optimizer.

        Args:
            model: a module.
            grads: gradients.
            state: what ``init`` or the last ``step`` returned.
            donate: reuse the memory of the model and the state.

        Returns:
            The model and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        check_donation("optim.Split.step", donate, self._differentiable)
        check_state("optim.Split.step", state, Splits)
        leaves, part = open_model("optim.Split.step", model)
        given = gather("optim.Split.step", model, leaves, part, grads)[1]
        states: list[Any] = []
        for number, (opt, held) in enumerate(zip(self.optimizers, state.states, strict=True)):
            if held is None:
                states.append(None)
                continue
            mine = [g if k == number else None for g, k in zip(given, state.labels, strict=True)]
            model, after = opt.step(model, unflatten_module(part, mine, None), held, donate=donate)
            states.append(after)
        return model, Splits(tuple(states), state.labels)

    def __repr__(self) -> str:
        pairs = zip(self.conditions, self.optimizers[1:], strict=True)
        inner = ", ".join(f"{group.condition!r}: {opt!r}" for group, opt in pairs)
        return f"Split({{{inner}}}, rest={self.optimizers[0]!r})"
