"""``Optimizer``: hyper-parameters as an immutable value, with ``init`` and a pure ``step``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.optim import groups as grouping
from parallax.optim.checks import check_layouts, check_state, paths_of
from parallax.optim.clocks import Clocks
from parallax.optim.donate import mark
from parallax.optim.hyper import Hyper, resolved
from parallax.optim.kernel import Kernel
from parallax.optim.lists import Lists, put, some
from parallax.optim.plan import Row, plan_for, remember
from parallax.optim.state import NEVER, Contents, State, around
from parallax.tree import core

__all__ = ["Optimizer"]

M = TypeVar("M")


class Optimizer(Kernel):
    """Hyper-parameters, and the pure functions ``init`` and ``step`` that they define.

    An optimizer is immutable and holds no model. Tensor hyper-parameters are its leaves, so that
    they can be differentiated, vmapped and changed without compiling again; numbers are constants.
    """

    # -- init -------------------------------------------------------------------------------------

    def init(self, model: Any) -> State:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state: moments as modules of the model's skeleton, holes for what is not trained.
            It fits the model after ``train``, ``reset`` and ``freeze`` too. A leaf that is
            trained only later gets its moments when it is first stepped.

        Raises:
            TypeError: if ``model`` is no module, or a leaf cannot be stepped by this optimizer.
            UninitializedError: if a leaf has no value yet.
            ValueError: if there is nothing to train.
        """
        what = f"optim.{type(self).__name__}.init"
        leaves, part = _open_model(model, what)
        trainable = part.trainable
        chosen = [k for k, (p, t) in enumerate(zip(leaves, trainable)) if t and p is not None]  # noqa: B905  # dynamo traces no strict=
        if not chosen:
            raise ValueError(
                f"{what}: {type(model).__name__} has nothing to train: it holds no Parameter that "
                f"is not frozen. Unfreeze some: tree.select(model, 'frozen').unfreeze()"
            )
        labels = grouping.labels(self._groups, model, len(leaves), what)
        with torch.set_grad_enabled(self._differentiable and torch.is_grad_enabled()):
            step = torch.zeros(
                (), dtype=torch.float32, device=self._clock_device(leaves[chosen[0]])
            )
            columns: dict[str, list[Any]] = {
                name: [None] * len(leaves) for h in self._hypers for name in self._moments(h)
            }
            for k in chosen:
                h = resolved(self._hypers[labels[k]], 0)
                if isinstance(leaves[k], Lazy) or not isinstance(leaves[k], Tensor):
                    raise _uninitialized(what, model, paths_of(model)[k])
                self._check_leaf(f"{type(model).__name__}.{paths_of(model)[k]}", leaves[k])
                for name in self._moments(h):
                    columns[name][k] = self._fresh(name, leaves[k].detach(), h)
        known = set(chosen)
        clock_of = tuple([0 if k in known else NEVER for k in range(len(leaves))])
        moments = {name: around(model, column) for name, column in columns.items()}
        sizes = tuple([tuple(p.shape) if isinstance(p, Tensor) else None for p in leaves])
        return State(step, moments, (), clock_of, labels, sizes, type(self).__name__)

    def _clock_device(self, leaf: Any) -> Any:
        on_device = self.hyper.get("capturable") and isinstance(leaf, Tensor)
        return leaf.device if on_device else "cpu"

    # -- step -------------------------------------------------------------------------------------

    def step(self, model: M, grads: Any, state: State, *, donate: bool = False) -> tuple[M, State]:
        """One step: the next model and state, as new trees.

        Parameters that are frozen, buffers, and leaves with a hole in ``grads`` stay as they are,
        and so do their moments. No graph is built unless the optimizer was made with
        ``differentiable=True``.

        Args:
            model: a module.
            grads: a module of its skeleton with gradients, and holes where there is none.
            state: what ``init`` or the last ``step`` returned.
            donate: write the result into the memory of ``model`` and ``state``, which are gone
                afterwards: using them raises ``DonatedError``. Tensors that were taken out of
                them before change under your hands. Only in eager code.

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
        leaves, part = _open_model(model, what)
        old = self._contents(state, part, what)
        plan, given = plan_for(what, model, leaves, part, grads, state, len(self._groups))
        if not (plan.kept or self._differentiable or dynamo.is_compiling()):
            _warn_of_graph(what, [given[k] for k in plan.chosen])
        if donate:
            _check_donation(what, self._differentiable)
            if not plan.kept:
                check_layouts(what, model, plan.chosen, given)
        clocks = Clocks(old.step, old.clocks, state.clock_of, plan.chosen)
        made = list(leaves)
        moments = {name: list(column) for name, column in old.moments.items()}
        with torch.set_grad_enabled(self._differentiable and torch.is_grad_enabled()):
            for row in plan.rows:
                h = self._hypers[row.group]
                at = self._lists(h, row, given, made, moments, clocks)
                at = self._advance(at, h, old.step, donate)
                put(made, row.members, at.params)
                for name, column in at.moments.items():
                    put(moments[name], row.members, column)
            step, others = clocks.ticked()
        next_state = old.close(step, moments, others, clocks.clock_of)
        next_model = core._close(part, made, model._rng)  # type: ignore[attr-defined]  # a module
        if not (dynamo.is_compiling() or self._differentiable):
            remember(plan, model, grads, state, next_model, next_state)
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
        h: Hyper,
        row: Row,
        given: Sequence[Any],
        leaves: list[Any],
        moments: dict[str, list[Any]],
        clocks: Clocks,
    ) -> Lists:
        columns, members = {}, row.members
        for name in self._moments(h):
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


# -- what is wrong --------------------------------------------------------------------------------


def _open_model(model: Any, what: str) -> tuple[Sequence[Any], Any]:
    if not is_module(model):
        raise TypeError(
            f"{what} takes a module, got {_kind(model)}. Hold what is trained in one: "
            f"class Both(Module): first: Encoder; second: Decoder"
        )
    return core._open(model)


def _uninitialized(what: str, model: Any, path: str) -> UninitializedError:
    return UninitializedError(
        f"{what}: {type(model).__name__}.{path} is not initialized. "
        f"Initialize first: model = model.initialize(rng)"
    )


def _check_donation(what: str, differentiable: bool) -> None:
    reason = ""
    if dynamo.is_compiling():
        reason = "torch.compile plans the memory of a compiled step itself"
    elif functorch.transform_active():
        reason = "a torch.func transform is running, whose values cannot be overwritten"
    elif differentiable:
        reason = "a differentiable step keeps its inputs for the gradient"
    if reason:
        raise ValueError(f"{what}: donate=True is for eager steps, and {reason}. Leave it out")


def _warn_of_graph(what: str, grads: Sequence[Tensor]) -> None:
    """Warns if somebody may want a derivative through this step, which records none."""
    if any([grad.grad_fn is not None for grad in grads]):
        name = what.removesuffix(".step")
        warnings.warn(
            f"{what}: the gradients carry a graph, and this step records none, so no derivative "
            f"goes through it. To differentiate it, write {name}(..., differentiable=True). "
            f"Otherwise take gradients that carry none: func.grad of model.train(rng), or "
            f"model.grad() after backward()",
            stacklevel=3,
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
