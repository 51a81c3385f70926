"""What a step computes from its arguments, and keeps for the next step.

Whether trees fit, which leaves are stepped, their dtypes and layouts: all of that is the same in
the next step, and computing it again costs as much as the kernel of a small model. So the state
that a step returns carries the plan of that step. It is used again for the model that was returned
with the state, or one with leaves of the same metadata, and for gradients of the same metadata.
Torch compares metadata in C++.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from copy import copy
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes
from parallax._compat.opaque import real
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module
from parallax.optim.checks import check_sizes, gather
from parallax.optim.state import State
from parallax.tree.memory import Memory

__all__ = ["Plan", "Row", "known_memory", "plan_for", "remember"]


class Row(NamedTuple):
    """The leaves of one group that are stepped.

    Attributes:
        group: the index of the group's hyper-parameters.
        members: the indices of the leaves.
        known: what is known about them; see ``Lists``.
    """

    group: int
    members: Sequence[int]
    known: dict[Any, bool]


class Plan:
    """What is the same for the steps of one run.

    Attributes:
        chosen: the indices of the leaves that are stepped.
        rows: the same by group.
        kept: whether it comes from an earlier step.
    """

    __slots__ = (
        "_check_grads",
        "_check_model",
        "_grads",
        "_groups",
        "_holes",
        "_model",
        "_pick",
        "chosen",
        "kept",
        "rows",
    )

    def __init__(self, chosen: Sequence[int], labels: Sequence[int], groups: int) -> None:
        self.chosen = chosen
        self.kept = False
        self._groups = groups
        members = _members(tuple(chosen), labels if groups else None)
        self.rows = [Row(group, found, {}) for group, found in members]

    def keep(self, model: Any, grads: Any) -> None:
        """Keeps what is needed to recognise such arguments, if they can be recognised."""
        leaves, self._model = flatten_module(model)
        given, self._grads = flatten_module(grads)
        self._pick = _picker(self.chosen, len(leaves))
        mine, theirs = self._pick(leaves), self._pick(given)
        dense = all([t.layout is torch.strided for t in (*mine, *theirs)])
        if not dense or self._model.expand != self._grads.expand:
            return
        stepped = set(self.chosen)
        trainable = enumerate(self._model.trainable)
        self._holes = [k for k, trains in trainable if trains and k not in stepped]
        self._check_model = _check(mine)
        self._check_grads = _check(theirs)
        self.kept = True

    def again(self) -> Plan:
        """The plan for a state that steps of another plan came to."""
        plan = copy(self)
        plan.rows = [Row(group, members, {}) for group, members, _ in self.rows]
        return plan

    def is_again(self, other: Plan) -> bool:
        """Whether two plans are for the same arguments."""
        return self._check_grads is other._check_grads

    def fits(self, model: Any, known: bool, grads: Any, groups: int) -> Sequence[Any] | None:
        """All gradients in the order of the model's leaves, if everything is as it was.

        Args:
            model: a module.
            known: whether its leaves are known to be as they were.
            grads: what should be its gradients.
            groups: how many groups the optimizer has.
        """
        if groups != self._groups or not is_module(grads):
            return None
        leaves, structure = flatten_module(model)
        given, theirs = flatten_module(grads)
        if structure is not self._model or theirs is not self._grads:
            return None
        if not (self._check_grads.check(*self._pick(given))):
            return None
        if not (known or self._check_model.check(*self._pick(leaves))):
            return None
        if any([leaves[k] is not None and given[k] is not None for k in self._holes]):
            return None
        return given


@real
def _members(
    chosen: tuple[int, ...], labels: Sequence[int] | None
) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """The groups that are stepped, and which of the chosen leaves each has."""
    own = [0 if labels is None else labels[k] for k in chosen]
    return tuple([
        (group, tuple([k for k, label in zip(chosen, own, strict=True) if label == group]))
        for group in sorted(set(own))
    ])  # fmt: skip


def _picker(chosen: Sequence[int], count: int) -> Callable[[Any], Sequence[Any]]:
    if len(chosen) == count:
        return tuple
    if len(chosen) > 1:
        return itemgetter(*chosen)
    return itemgetter(slice(chosen[0], chosen[0] + 1) if chosen else slice(0))


def _check(tensors: Sequence[Tensor]) -> Any:
    return dynamo.tensor_check(tensors, [t.shape for t in tensors], [t.stride() for t in tensors])


def plan_for(
    what: str, model: Any, leaves: Sequence[Any], part: Any, grads: Any, state: State, groups: int
) -> tuple[Plan, Sequence[Any]]:
    """The plan of a step, and all gradients in the order of the model's leaves.

    Raises:
        ValueError: if the gradients have another skeleton, or one has another shape or dtype, or
            the state was made for leaves of other shapes or for other groups.
    """
    traced = dynamo.is_compiling()
    kept = None if traced else vars(state).get(_MEMO)
    if kept is not None:
        plans, made, _ = kept
        for place, plan in enumerate(plans):
            last = place == 0
            found = plan.fits(model, last and made() is model, grads, groups)
            if found is not None:
                return plan if last else plan.again(), found
    if 0 < groups < max(state.labels):
        raise ValueError(
            f"{what}: the state was made for {max(state.labels)} groups or more, and the optimizer "
            f"has {groups}. Make one for this optimizer: state = opt.init(model)"
        )
    chosen, given = gather(what, model, leaves, part, grads)
    if not traced:
        check_sizes(what, model, leaves, chosen, state.sizes)
    return Plan(chosen, state.labels, groups), given


_MEMO = "_plans"
_NOTHING: tuple[Any, Any, Any] = ((), None, None)
_MOST = 4  # a run may alternate: a part of the model may have a gradient in every second step only


def known_memory(
    state: State,
    model: Any,
    leaves: Sequence[Any],
    chosen: Sequence[int],
    read: Sequence[Tensor],
) -> Memory | None:
    """The memory that the last donated step wrote, if the next step may write it again.

    Args:
        state: the state before the step.
        model: the module before the step.
        leaves: its leaves.
        chosen: the indices of those that are stepped.
        read: all other tensors that the step reads.
    """
    _, made, memory = vars(state).get(_MEMO, _NOTHING)
    if memory is None or not (made() is model or memory.is_of(leaves)):
        return None
    if not memory.covers(chosen):  # a leaf that had no gradient may be a view of another tensor
        return None
    return memory if memory.is_apart_from(read) else None


def remember(
    plan: Plan,
    model: Any,
    grads: Any,
    before: State,
    made: Any,
    state: State,
    memory: Memory | None,
) -> None:
    """Keeps a plan on the state that its step made, for the next step, and a few older ones.

    Args:
        plan: the plan.
        model: the module before the step.
        grads: its gradients.
        before: the state before the step.
        made: the module after the step.
        state: the state after the step.
        memory: what the step wrote, if it was donated.
    """
    if functorch.transform_active() or modes.dispatch_mode_active():
        return
    if not plan.kept:
        plan.keep(model, grads)
    if plan.kept:
        plans = vars(before).get(_MEMO, _NOTHING)[0]
        if not (plans and plans[0] is plan):
            plans = (plan, *[other for other in plans if not other.is_again(plan)][: _MOST - 1])
        vars(state)[_MEMO] = plans, weakref.ref(made), memory
