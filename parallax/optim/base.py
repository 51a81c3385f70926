"""``Optimizer``: hyper-parameters as an immutable value, with ``init`` and a pure ``step``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import torch
from torch import Tensor

from parallax import _compat, registry
from parallax.fields import Lazy, UninitializedError
from parallax.func.moving import trainable_of
from parallax.nodes import is_module
from parallax.optim import groups as grouping
from parallax.optim import vmapped
from parallax.optim.checks import check_layouts, check_sizes, gather, paths_of, remember
from parallax.optim.clocks import Clocks
from parallax.optim.donate import mark
from parallax.optim.hyper import Hyper, plain, resolved, sample
from parallax.optim.lists import How, Lists, put, some
from parallax.optim.scalars import Multiplied, Unread
from parallax.optim.state import NEVER, Contents, State, around
from parallax.tree import core

__all__ = ["Groups", "Optimizer"]

M = TypeVar("M")
Groups = Mapping[Any, Mapping[str, Any]] | None


class Optimizer:
    """Hyper-parameters, and the pure functions ``init`` and ``step`` that they define.

    An optimizer is immutable and holds no model. Tensor hyper-parameters are its leaves, so that
    they can be differentiated, vmapped and changed without compiling again; numbers are constants.
    """

    _torch: ClassVar[type[torch.optim.Optimizer]]
    _fused_on: ClassVar[tuple[str, ...]] = ()  # types of devices with a fused kernel

    lr: Any
    names: tuple[str, ...]
    hyper: Hyper
    groups: tuple[grouping.Group, ...]
    _leaves: tuple[Any, ...]
    _recipe: tuple[Any, ...]

    def __init__(self, groups: Groups, **hyper: Any) -> None:
        for name, value in hyper.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "names", tuple(hyper))
        object.__setattr__(self, "hyper", hyper)
        object.__setattr__(self, "groups", grouping.freeze(groups, self.names, type(self).__name__))
        values = grouping.Values()
        recipe = tuple([values.take(value) for value in hyper.values()])
        others = tuple([group.flatten(values) for group in self.groups])
        object.__setattr__(self, "_leaves", tuple(values.tensors))
        object.__setattr__(self, "_recipe", (type(self), self.names, recipe, others))
        if not _compat.is_compiling():
            self._validate()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        registry.register(cls, _flatten, _unflatten)

    # -- a value ----------------------------------------------------------------------------------

    def replace(self, **changes: Any) -> Self:
        """The optimizer with other hyper-parameters.

        Args:
            **changes: new values by name; ``groups`` too.

        Returns:
            A new optimizer; states made by this one fit it.

        Raises:
            TypeError: if there is no such hyper-parameter.

        Example:
            >>> from parallax import optim
            >>> optim.SGD(lr=0.1).replace(lr=0.01).lr
            0.01
        """
        unknown = [name for name in changes if name not in (*self.names, "groups")]
        if unknown:
            raise TypeError(
                f"optim.{type(self).__name__} has no hyper-parameter {unknown[0]!r}; "
                f"it has {', '.join(self.names)}"
            )
        groups = changes.pop("groups", grouping.thaw(self.groups))
        return self._made(groups=groups, **{**self.hyper, **changes})

    def _made(self, **hyper: Any) -> Self:
        return type(self)(**hyper)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise FrozenInstanceError(
            f"cannot assign to optim.{type(self).__name__}.{name}: optimizers are immutable. "
            f"Make a new one: opt = opt.replace({name}=...)"
        )

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete optim.{type(self).__name__}.{name}")

    def __repr__(self) -> str:
        parts = [f"{name}={getattr(self, name)!r}" for name in self.names]
        if self.groups:
            parts.append(f"groups={grouping.thaw(self.groups)!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _validate(self) -> None:
        """Asks torch's own class whether it takes these hyper-parameters."""
        for group in (None, *self.groups):
            hyper = self.hyper if group is None else group.over(self.hyper)
            plain = {name: sample(name, value) for name, value in hyper.items()}
            try:
                self._torch([torch.zeros(1, 1)], **plain)
            except (ValueError, TypeError, RuntimeError) as error:
                where = "" if group is None else f" in groups[{group.condition!r}]"
                raise type(error)(f"optim.{type(self).__name__}{where}: {error}") from None

    # -- what subclasses say ----------------------------------------------------------------------

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        """The names of the moments that a leaf has with these hyper-parameters."""
        raise NotImplementedError

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        """A moment of a leaf that was never stepped."""
        return torch.zeros_like(param)

    def _check_leaf(self, path: str, param: Tensor) -> None:
        """Raises if this optimizer cannot step a leaf."""

    def _kernel(self, at: Lists, h: Hyper, how: How) -> Lists:
        """Steps private lists in place by torch's kernel; returns the lists it wrote."""
        raise NotImplementedError

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
        trainable = trainable_of(part)
        chosen = [k for k, (p, t) in enumerate(zip(leaves, trainable)) if t and p is not None]  # noqa: B905  # dynamo traces no strict=
        if not chosen:
            raise ValueError(
                f"{what}: {type(model).__name__} has nothing to train: it holds no Parameter that "
                f"is not frozen. Unfreeze some: tree.select(model, 'frozen').unfreeze()"
            )
        labels = grouping.labels(self.groups, model, len(leaves), what)
        hypers = [self.hyper, *[group.over(self.hyper) for group in self.groups]]
        differentiable = bool(getattr(self, "differentiable", False))
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            step = torch.zeros(
                (), dtype=torch.float32, device=self._clock_device(leaves[chosen[0]])
            )
            columns: dict[str, list[Any]] = {
                name: [None] * len(leaves) for h in hypers for name in self._moments(h)
            }
            for k in chosen:
                h = resolved(hypers[labels[k]], 0)
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
        on_device = getattr(self, "capturable", False) and isinstance(leaf, Tensor)
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
        chosen, given, facts = gather(what, model, leaves, part, grads)
        if not _compat.is_compiling():
            check_sizes(what, model, leaves, chosen, facts, state.sizes)
        clocks = Clocks(old.step, old.clocks, state.clock_of, chosen)
        differentiable = bool(getattr(self, "differentiable", False))
        if donate:
            _check_donation(what, differentiable)
            check_layouts(what, model, chosen, given)
        made = list(leaves)
        moments = {name: list(column) for name, column in old.moments.items()}
        with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
            for members, h in self._split(chosen, state.labels):
                at = self._lists(h, members, given, made, moments, clocks)
                at = self._advance(at, h, old.step, differentiable, donate)
                put(made, members, at.params)
                for name, column in at.moments.items():
                    put(moments[name], members, column)
            step, others = clocks.ticked()
        next_state = old.close(step, moments, others, clocks.clock_of)
        next_model = core._close(part, made, model._rng)  # type: ignore[attr-defined]  # a module
        if not _compat.is_compiling():
            remember(next_model, facts)
        if donate:
            mark(model)
            mark(state, *state.moments.values())
        return next_model, next_state

    def _contents(self, state: Any, part: Any, what: str) -> Contents:
        if type(state) is not State:
            is_module(state)  # which raises if it was donated
            raise TypeError(
                f"{what}: the state must be what init returned, got {_kind(state)}. "
                f"Make one: state = opt.init(model)"
            )
        if state.optimizer != type(self).__name__:
            raise ValueError(
                f"{what}: the state was made by optim.{state.optimizer}. "
                f"Make one for this optimizer: state = opt.init(model)"
            )
        return Contents(state, part, what)

    def _split(
        self, chosen: Sequence[int], labels: Sequence[int]
    ) -> list[tuple[Sequence[int], Hyper]]:
        """The stepped leaves of each group, with the group's hyper-parameters."""
        if not self.groups:
            return [(chosen, self.hyper)] if chosen else []
        hypers = [self.hyper, *[group.over(self.hyper) for group in self.groups]]
        rows = [([k for k in chosen if labels[k] == j], h) for j, h in enumerate(hypers)]
        return [(members, h) for members, h in rows if members]

    def _lists(
        self,
        h: Hyper,
        members: Sequence[int],
        given: Sequence[Any],
        leaves: list[Any],
        moments: dict[str, list[Any]],
        clocks: Clocks,
    ) -> Lists:
        columns = {}
        for name in self._moments(h):
            if name not in moments:
                raise ValueError(
                    f"optim.{type(self).__name__}.step: the state has no {name!r}; it was made "
                    f"with other options. Make one for these: state = opt.init(model)"
                )
            columns[name] = some(moments[name], members)
        return Lists(
            some(leaves, members), some(given, members), columns, clocks.before,
            some(clocks.index, members),
        )  # fmt: skip

    def _advance(
        self, at: Lists, h: Hyper, step: Tensor, differentiable: bool, donate: bool
    ) -> Lists:
        """Steps lists, in private memory unless ``donate``."""
        if _compat.is_compiling():
            capturable = "capturable" in h
            return self._run(at, resolved(h, step), How(False, False, capturable, differentiable))
        if differentiable:
            return self._differentiable(at, resolved(h, step))
        if _compat.transform_active():
            if _compat.vmap_active():
                return self._vmapped(at, h, step)
            return self._run(at, plain(resolved(h, int(step))), How(False, False))
        return self._eager(at, h, step, donate)

    def _differentiable(self, at: Lists, h: Hyper) -> Lists:
        at = at.private()
        params: list[Any] = [param.as_subclass(Multiplied) for param in at.params]
        at.params = params
        at.grads = [
            grad.clone() for grad in at.grads
        ]  # a decay that requires grad is added in place
        with Unread():
            at = self._run(at, h, How(False, False, False, True), donate=True)
        at.params = [param.as_subclass(Tensor) for param in at.params]
        return at

    def _eager(self, at: Lists, h: Hyper, step: Tensor, donate: bool = False) -> Lists:
        h = plain(resolved(h, step))
        foreach, fused = h.get("foreach"), h.get("fused")
        if foreach is None and fused is None and self._fused_on:
            fused = at.fusable(self._fused_on)
        capturable = bool(h.get("capturable")) and at.params[0].device.type != "cpu"
        return self._run(at, h, How(foreach, bool(fused), capturable), donate)

    def _run(self, at: Lists, h: Hyper, how: How, donate: bool = False) -> Lists:
        """Fills in missing moments and calls the kernel."""
        for name, column in at.moments.items():
            if any([moment is None for moment in column]):
                at.moments[name] = [
                    self._fresh(name, p.detach(), h) if m is None else m
                    for p, m in zip(at.params, column)  # noqa: B905  # dynamo traces no strict=
                ]
        return self._kernel(at if donate else at.private(), h, how)

    def _vmapped(self, at: Lists, h: Hyper, step: Tensor) -> Lists:
        filled: list[tuple[str, int]] = []

        def member(arguments: Any) -> list[Tensor]:
            params, grads, moments, clocks, h, step = arguments
            done = self._eager(Lists(params, grads, moments, clocks, at.clock_of), h, step)
            filled[:] = [
                (name, k) for name, column in done.moments.items()
                for k, moment in enumerate(column) if moment is not None
            ]  # fmt: skip
            return [*done.params, *[done.moments[name][k] for name, k in filled]]

        flat = vmapped.call(member, (at.params, at.grads, at.moments, at.clocks, h, step))
        count = len(at.params)
        moments: dict[str, list[Any]] = {name: [None] * count for name in at.moments}
        for (name, k), moment in zip(filled, flat[count:], strict=True):
            moments[name][k] = moment
        return Lists(flat[:count], at.grads, moments, at.clocks, at.clock_of)


# -- as a leaf-bearing value ----------------------------------------------------------------------


def _flatten(opt: Optimizer) -> tuple[tuple[Any, ...], Any]:
    # What is a leaf was settled when it was made: vmap unflattens around marks of its own.
    return opt._leaves, opt._recipe


def _unflatten(recipe: Any, leaves: Any) -> Optimizer:
    cls, names, hyper, groups = recipe
    opt: Optimizer = object.__new__(cls)
    values = grouping.Values(leaves)
    hyper_of: Hyper = {}
    for name, mark_ in zip(names, hyper):  # noqa: B905  # dynamo traces no strict=
        hyper_of[name] = values.give(mark_)
        object.__setattr__(opt, name, hyper_of[name])
    object.__setattr__(opt, "names", names)
    object.__setattr__(opt, "hyper", hyper_of)
    object.__setattr__(
        opt, "groups", tuple([grouping.Group.unflatten(group, values) for group in groups])
    )
    object.__setattr__(opt, "_leaves", tuple(leaves))
    object.__setattr__(opt, "_recipe", recipe)
    return opt


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
    if _compat.is_compiling():
        reason = "torch.compile plans the memory of a compiled step itself"
    elif _compat.transform_active():
        reason = "a torch.func transform is running, whose values cannot be overwritten"
    elif differentiable:
        reason = "a differentiable step keeps its inputs for the gradient"
    if reason:
        raise ValueError(f"{what}: donate=True is for eager steps, and {reason}. Leave it out")


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
