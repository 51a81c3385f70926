"""``Optimizer``: hyper-parameters as an immutable value, with ``init`` and a pure ``step``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax.core.fields import Lazy
from parallax.core.registry import unflatten_module
from parallax.optim import groups as grouping
from parallax.optim.checks import (
    check_layouts,
    check_leaf,
    check_state,
    open_model,
    paths_of,
    refuse_uninitialized,
    size_of,
)  # fmt: skip
from parallax.optim.clocks import Clocks
from parallax.optim.derivatives import being_taken, recorded, refuse_derivatives, warn_of_graph
from parallax.optim.donate import check_donation
from parallax.optim.habits import hint_at_habits
from parallax.optim.hyper import Hyper, refuse_several, resolved
from parallax.optim.lists import Lists, put, some
from parallax.optim.plan import Row, known_memory, plan_for, remember
from parallax.optim.state import NEVER, Contents, State, around
from parallax.optim.value import Value
from parallax.tree.donated import mark
from parallax.tree.memory import make_private, memory_of
from parallax.tree.mixing import refuse_mixed

__all__ = ["Optimizer"]

M = TypeVar("M")


@hint_at_habits
class Optimizer(Value, ABC):
    """Hyper-parameters, and the pure functions ``init`` and ``step`` that they define.

    An optimizer is immutable and holds no model. Tensor hyper-parameters are its leaves, so that
    they can be differentiated, vmapped and changed without compiling again; numbers are constants.

    Example:
        >>> import torch
        >>> from parallax import func, nn, optim
        >>> model, opt = nn.Linear(2, 1).initialize(0), optim.Adam(lr=torch.tensor(0.1))
        >>> isinstance(opt, optim.Optimizer)
        True
        >>> state = opt.init(model)
        >>> loss = func.grad(lambda model: model(torch.ones(4, 2)).square().mean())
        >>> model, state = opt.step(model, loss(model), state)
        >>> opt = opt.replace(lr=opt.lr / 10)  # the state still fits
        >>> model, state = opt.step(model, loss(model), state)
    """

    # -- what each class defines ------------------------------------------------------------------

    _takes_sparse: ClassVar[bool] = False  # gradients, where all is eager and nothing donated

    @abstractmethod
    def _moments(self, h: Hyper) -> tuple[str, ...]:
        """The names of the moments that a leaf has with these hyper-parameters."""

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        """A moment of a leaf that was never stepped."""
        return torch.zeros_like(param)

    def _first(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        """As ``_fresh``; in differentiable steps with the graph of the leaf."""
        return self._fresh(name, param if self._differentiable else param.detach(), h)

    def _check_leaf(self, path: str, param: Tensor) -> None:
        """Raises if this optimizer cannot step a leaf."""

    @property
    def _differentiable(self) -> bool:
        """Whether a step records its graph: if it was made so, or within a derivative."""
        asked = self.hyper.get("differentiable")  # None: the class has no such steps
        return bool(asked) or (asked is not None and being_taken())

    def _numbers(self, leaf: Any) -> dict[str, Tensor]:
        """The first values of what is kept for all leaves together, beside a leaf."""
        del leaf
        return {}

    @abstractmethod
    def _advance_all(
        self,
        rows: Sequence[Lists],
        hypers: Sequence[Hyper],
        step: Tensor,
        numbers: Mapping[str, Tensor],
        donate: bool,
    ) -> tuple[list[Lists], Mapping[str, Tensor]]:
        """Steps the lists of all groups; returns them, and what is kept for all leaves together."""

    def _full(self, at: Lists, h: Hyper) -> Lists:
        """The lists, with new moments for leaves that were never stepped."""
        if at.full():
            return at
        return at.filled(lambda name, param: self._first(name, param, h))

    # -- init -------------------------------------------------------------------------------------

    def init(self, model: Any) -> State:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state: moments as modules of the model's skeleton, holes for what is not trained.
            It also fits the model after ``train``, ``reset`` and ``freeze``. A leaf that is
            trained only later gets its moments when it is first stepped.

        Raises:
            TypeError: if ``model`` is not a module, or a leaf cannot be stepped by this optimizer.
            UninitializedError: if a leaf has no value yet.
            ValueError: if there is nothing to train.
        """
        what = f"optim.{type(self).__name__}.init"
        if any([leaf.numel() != 1 for leaf in self._leaves]):
            refuse_several(what, self._hypers)
        leaves, part = open_model(what, model)
        trainable = part.trainable
        chosen = [
            k for k, (p, t) in enumerate(zip(leaves, trainable, strict=True)) if t and p is not None
        ]
        if not chosen:
            raise ValueError(
                f"{what}: {type(model).__name__} has nothing to train: it holds no Parameter that "
                f"is not frozen. Unfreeze some: tree.select(model, 'frozen').unfreeze()"
            )
        labels = grouping.labels(self._groups, model, len(leaves), what)
        with recorded(self._differentiable):
            step = torch.zeros(
                (), dtype=torch.float32, device=self._clock_device(leaves[chosen[0]])
            )
            columns: dict[str, list[Any]] = {
                name: [None] * len(leaves) for h in self._hypers for name in self._moments(h)
            }
            for k in chosen:
                h = resolved(self._hypers[labels[k]], 0)
                if isinstance(leaves[k], Lazy) or not isinstance(leaves[k], Tensor):
                    refuse_uninitialized(what, model, k)
                path = f"{type(model).__name__}.{paths_of(model)[k]}"
                check_leaf(what, path, leaves[k])
                self._check_leaf(path, leaves[k])
                for name in self._moments(h):
                    columns[name][k] = self._first(name, leaves[k], h)
        known = set(chosen)
        clock_of = tuple([0 if k in known else NEVER for k in range(len(leaves))])
        moments = {name: around(model, column) for name, column in columns.items()}
        sizes = tuple([size_of(leaf) for leaf in leaves])
        numbers: Any = self._numbers(leaves[chosen[0]])
        return State(step, moments, (), numbers, clock_of, labels, sizes, type(self).__name__)

    def _clock_device(self, leaf: Any) -> Any:
        on_device = self.hyper.get("capturable") and isinstance(leaf, Tensor)
        return leaf.device if on_device else "cpu"

    # -- step -------------------------------------------------------------------------------------

    def step(self, model: M, grads: Any, state: State, donate: bool = False) -> tuple[M, State]:
        """One step: the next model and state, as new trees.

        Parameters that are frozen, buffers, and leaves with a hole in ``grads`` stay as they are,
        and so do their moments. Within a derivative (``func.grad`` and its like) the step is
        differentiated. Outside no graph is built, unless the optimizer was made with
        ``differentiable=True``, which is for a ``backward()`` through the step.

        Args:
            model: a module.
            grads: a module of its skeleton with gradients, and holes where there is none.
            state: what ``init`` or the last ``step`` returned.
            donate: write the result into the memory of ``model`` and ``state``, which are gone
                afterwards: using them raises ``DonatedError``. A leaf that you took out of them
                before will be overwritten. A leaf that is not dense, or whose memory another
                tensor uses too, is copied once and the copy is written from then on. In compiled
                code it takes ``parallax.compile(..., donate=...)``, which does the same.

        Returns:
            The model and the state after the step.

        Raises:
            ValueError: if ``grads`` or ``state`` do not fit the model; the message names the first
                path. Nothing has changed then, donated or not.
            TypeError: if an argument is not what it should be.

        Example:
            >>> import torch
            >>> from parallax import Module, Parameter, optim
            >>> class Point(Module):
            ...     at: Parameter
            >>> point, opt = Point(torch.ones(2)), optim.SGD(lr=0.1)
            >>> state = opt.init(point)
            >>> point, state = opt.step(point, Point(torch.ones(2)), state)
            >>> point.at
            tensor([0.9000, 0.9000])
        """
        what = f"optim.{type(self).__name__}.step"
        donate = check_donation(what, donate, self._differentiable)
        if any([leaf.numel() != 1 for leaf in self._leaves]):
            refuse_several(what, self._hypers)
        leaves, part = open_model(what, model)
        old = self._contents(state, part, what)
        plan, given = plan_for(what, model, leaves, part, grads, state, len(self._groups))
        if "differentiable" not in self.hyper:
            values = (leaves, given, self._leaves, *old.moments.values())
            refuse_derivatives(what, lambda: chain(*values))
        if not (plan.kept or dynamo.is_compiling()):
            check_layouts(what, model, plan.chosen, given, self._takes_sparse and not donate)
            if not self._differentiable:
                warn_of_graph(what, [given[k] for k in plan.chosen], self)
        clocks = Clocks(old.step, old.clocks, old.clock_of, plan.chosen)
        made = list(leaves)
        moments = {name: list(column) for name, column in old.moments.items()}
        columns = [made, *moments.values()]
        memory = None
        if donate:
            read = [*some(given, plan.chosen), *self._leaves, *clocks.before]
            memory = known_memory(state, model, leaves, plan.chosen, read)
            if memory is None:
                make_private(plan.chosen, columns, read)
        lists = [self._lists(row, given, made, moments, clocks) for row in plan.rows]
        try:
            with recorded(self._differentiable):
                hypers = [self._hypers[row.group] for row in plan.rows]
                advanced, numbers = self._advance_all(lists, hypers, old.step, old.numbers, donate)
                for row, at, done in zip(plan.rows, lists, advanced, strict=True):
                    put(made, row.members, done.params)
                    for name, column in done.moments.items():
                        put(moments[name], row.members, column)
                    memory = memory if done is at else None
                step, others = clocks.ticked()
        except BaseException as error:
            if donate and not (isinstance(error, (TypeError, ValueError)) and len(lists) == 1):
                mark(model)  # a kernel may have written a part of it
                mark(state, *state.moments.values())
            trees = {"the model": leaves, "the gradients": given, **old.moments}
            refuse_mixed(error, what, part.paths, trees)
            raise
        next_state = old.close(step, moments, others, clocks.clock_of, numbers)
        next_model = unflatten_module(part, made, model._rng)  # type: ignore[attr-defined]  # a module
        if not (dynamo.is_compiling() or self._differentiable):
            if donate and memory is None:
                memory = memory_of(plan.chosen, columns)
            remember(plan, model, grads, state, next_model, next_state, memory)
        if donate:
            mark(model)
            mark(state, *state.moments.values())
        return next_model, next_state

    def _contents(self, state: Any, part: Any, what: str) -> Contents:
        check_state(what, state, State)
        if state.optimizer != type(self).__name__:
            raise ValueError(
                f"{what}: the state was made by optim.{state.optimizer}. "
                f"Make one for this optimizer: state = opt.init(model)"
            )
        return Contents(state, part, what)

    def _lists(
        self,
        row: Row,
        given: Sequence[Any],
        leaves: list[Any],
        moments: dict[str, list[Any]],
        clocks: Clocks,
    ) -> Lists:
        columns, members = {}, row.members
        for name in self._moments(self._hypers[row.group]):
            if name not in moments:
                raise ValueError(
                    f"optim.{type(self).__name__}.step: the state has no {name!r}; it was made "
                    f"with other options. Make one for these: state = opt.init(model)"
                )
            columns[name] = some(moments[name], members)
        return Lists(
            some(leaves, members), some(given, members), columns, clocks.before,
            some(clocks.index, members), row.known,
        )  # fmt: skip
