"""Transformations of gradients before an optimizer, and of its updates after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import answered, shown
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.optim.checks import check_state, gather, open_initialized, open_model
from parallax.optim.choose import leaves_out_steps
from parallax.optim.derivatives import is_differentiable, recorded, warn_of_graph
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits
from parallax.optim.state import around
from parallax.tree import core
from parallax.tree.donated import mark

__all__ = ["Chain", "Chained", "chain"]

M = TypeVar("M")
_WHAT = "chain(...).step"


class Chained(Module):
    """The states of the parts of a chain, which ``chain(...).init`` returns.

    Attributes:
        parts: one for each part, in their order: a module, or ``None`` for a part without a state.

    Example:
        >>> from parallax import nn, optim
        >>> opt = optim.chain(optim.ClipNorm(1.0), optim.Adam())
        >>> state: optim.Chained = opt.init(nn.Linear(2, 1).initialize(0))
        >>> [type(part).__name__ for part in state.parts]
        ['NoneType', 'State']
    """

    parts: tuple[Module | None, ...]


@hint_at_habits
class Chain:
    """An optimizer between transformations; see ``chain``."""

    def __init__(self, parts: tuple[Any, ...], place: int) -> None:
        self.parts = parts
        self.place = place  # of the optimizer
        self.opt = parts[place]

    @property
    def _differentiable(self) -> bool:
        return is_differentiable(self.opt)

    @property
    def _leaves_out_steps(self) -> bool:
        return leaves_out_steps(self.opt)

    def init(self, model: Any) -> Chained:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state.
        """
        open_initialized("chain(...).init", model)
        with recorded(self._differentiable):
            states = [p.init(model) if hasattr(p, "init") else None for p in self.parts]
        return Chained(tuple(states))

    def step(self, model: M, grads: Any, state: Chained, donate: bool = False) -> tuple[M, Chained]:
        """Transforms the gradients, steps, and transforms the update.

        Args:
            model: a module.
            grads: gradients.
            state: what ``init`` or the last ``step`` returned.
            donate: let the optimizer reuse the memory of its own state, and of the model if
                nothing comes after it.

        Returns:
            The model and the state.

        Raises:
            ValueError: if something does not fit the model.
        """
        writes = check_donation(_WHAT, donate, self._differentiable)
        check_state(_WHAT, state, Chained)
        if len(state.parts) != len(self.parts):
            raise ValueError(
                f"{_WHAT}: the state was made for a chain of {len(state.parts)} parts, and this "
                f"one has {len(self.parts)}. Make one for this chain: state = opt.init(model)"
            )
        before, own = state.parts[: self.place], state.parts[self.place]
        if self.place and not (self._differentiable or dynamo.is_compiling()):
            warn_of_graph(_WHAT, core.leaves(grads), self.opt)
        with recorded(self._differentiable):
            grads, first = _through(self.parts[: self.place], grads, before, model)
        after = self.parts[self.place + 1 :]
        if not after:
            model, own = self.opt.step(model, grads, own, donate=donate)
            return model, Chained((*first, own))
        start = model
        if writes:
            with torch.no_grad():
                start = core.map(Tensor.clone, model)
        made, own = self.opt.step(model, grads, own, donate=donate)
        with recorded(self._differentiable):
            updates = _difference(start, made, grads)
            rest = state.parts[self.place + 1 :]
            updates, last = _through(after, updates, rest, start)
            made = _sum(start, updates, made)
        if writes:
            mark(model)
        return made, Chained((*first, own, *last))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.parts))})"


@answered("optim.chain", "optim.chain(optim.ClipNorm(1.0), optim.Adam())")
def chain(*parts: Any) -> Chain:
    """An optimizer with transformations before and after it, which is an optimizer too.

    What stands before the optimizer transforms the gradients. What stands after it transforms the
    update: a tree like the gradients, which is added to the model in the end.

    A transformation is a function from a tree to another, such as ``ClipNorm(1.0)``. One that
    reads the model, or has a state, is an object with ``update(tree, state, model)``, which returns
    the new tree and the new state; ``model`` is the one before the step. If it has
    ``init(model)``, that returns its first state, a module; otherwise the state is ``None``. No
    part records a graph, unless the optimizer was made with ``differentiable=True`` or a derivative
    is being taken.

    Args:
        *parts: transformations and one optimizer.

    Returns:
        The optimizer.

    Raises:
        TypeError: if there is no optimizer or more than one, or a part is no transformation.
        ValueError: if parts stand after an optimizer that leaves out steps, such as
            ``SkipNonfinite``: they would run in those, too.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt = optim.chain(optim.ClipNorm(1.0), optim.SGD(lr=1.0))
        >>> point = Point(torch.zeros(2))
        >>> opt.step(point, Point(torch.tensor([3.0, 4.0])), opt.init(point))[0].at
        tensor([-0.6000, -0.8000])
        >>> opt = optim.chain(optim.Adam(lr=0.1), optim.ClipNorm(0.1), optim.Lookahead())
    """
    places = [k for k, part in enumerate(parts) if _is_optimizer(part)]
    if not places:
        raise TypeError(
            f"chain: one part must be an optimizer, got {shown(parts)}. "
            f"Write optim.chain(optim.ClipNorm(1.0), optim.Adam())"
        )
    if len(places) > 1:
        first, second = [type(parts[k]).__name__ for k in places[:2]]
        raise TypeError(
            f"chain: {first} and {second} are both optimizers, and one steps. For other parts of "
            f"the model write optim.Split({{condition: optim.{second}()}}, rest=optim.{first}()). "
            f"A transformation of yours has update(tree, state, model) in place of step"
        )
    for k, part in enumerate(parts):
        if k != places[0] and (isinstance(part, type) or not _is_transformation(part)):
            instance = f"an instance, {part.__name__}(...), " if isinstance(part, type) else ""
            raise TypeError(
                f"chain: {shown(part)} is not a transformation. Give {instance}a function of a "
                f"tree, or an object with update(tree, state, model) and, for a state, init(model)"
            )
    place, opt = places[0], parts[places[0]]
    if place + 1 < len(parts) and leaves_out_steps(opt):
        raise ValueError(_inside_out(opt, parts[place + 1 :]))
    return Chain(parts, place)


def _inside_out(opt: Any, after: Sequence[Any]) -> str:
    """What is wrong with parts after an optimizer that leaves out steps."""
    names = [getattr(part, "__name__", f"{type(part).__name__}(...)") for part in after]
    name, inner = type(opt).__name__, "opt"
    if isinstance(opt, Chain) or not hasattr(opt, "opt"):
        wrapper = "SkipNonfinite"  # as an example, as it is somewhere inside
    else:
        wrapper, inner = name, f"{type(opt.opt).__name__}(...)"
    more = ", every" if wrapper == "Accumulate" else ""
    return (
        f"chain: {names[0].removesuffix('(...)')} stands after {name}, which leaves out steps, and "
        f"would run in those, too. Put the chain inside: "
        f"optim.{wrapper}(optim.chain({inner}, {', '.join(names)}){more})"
    )


def _is_optimizer(part: Any) -> bool:
    return not isinstance(part, type) and hasattr(part, "step") and hasattr(part, "init")


def _is_transformation(part: Any) -> bool:
    return hasattr(part, "update") or (callable(part) and not hasattr(part, "init"))


def _through(
    parts: Sequence[Any], tree: Any, states: Sequence[Any], model: Any
) -> tuple[Any, list[Any]]:
    """The tree behind all transformations, and their new states."""
    made: list[Any] = []
    for part, held in zip(parts, states, strict=True):
        after = None
        if hasattr(part, "update"):
            tree, after = part.update(tree, held, model)
        else:
            tree = part(tree)
        made.append(after)
    return tree, made


def _difference(model: Any, made: Any, grads: Any) -> Any:
    """What was added to each leaf that was stepped; holes elsewhere."""
    leaves, part = open_model(_WHAT, model)
    chosen, _ = gather(_WHAT, model, leaves, part, grads)
    stepped = flatten_module(made)[0]
    updates: list[Any] = [None] * len(leaves)
    for k in chosen:
        if stepped[k] is not leaves[k]:
            updates[k] = stepped[k] - leaves[k]
    return around(model, updates)


def _sum(model: Any, updates: Any, made: Any) -> Any:
    """The model with the updates added; the rest is that of ``made``."""
    leaves, part = open_model(_WHAT, model)
    chosen, given = gather(_WHAT, model, leaves, part, updates, "the updates")
    stepped, theirs = flatten_module(made)
    sums = list(stepped)
    for k in chosen:
        sums[k] = leaves[k] + given[k]
    return unflatten_module(theirs, sums, made._rng)
