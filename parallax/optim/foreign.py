"""Any ``torch.optim.Optimizer`` as a pure step, by running it on private copies."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import random
from parallax._compat import dynamo, functorch
from parallax._errors.arguments import answered, shown
from parallax.core.fields import Buffer, Lazy
from parallax.core.module import Module
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.optim.arguments import check_kind, check_names
from parallax.optim.attributes import Look, changed, look
from parallax.optim.carry import cast, copied, pack, unpack
from parallax.optim.checks import check_sizes, gather, open_model, size_of
from parallax.optim.derivatives import being_taken, refuse_transforms
from parallax.optim.donate import check_donation
from parallax.optim.foreign_groups import Group, changes
from parallax.optim.foreign_memory import beside, check_apart
from parallax.optim.foreign_operator import Known
from parallax.optim.foreign_operator import step as step_in_a_graph
from parallax.optim.habits import check_given, hint_at_habits
from parallax.optim.saved import Constants, Tensors, below, constant, shaped
from parallax.optim.state import NEVER, State, around, kept_for
from parallax.tree.donated import mark

__all__ = ["Foreign", "ForeignState", "from_torch"]

M = TypeVar("M")


class ForeignState(State):
    """What a ``torch.optim.Optimizer`` remembers, as a tree.

    Its moments are what the optimizer keeps per parameter as one tensor or number.

    Attributes:
        rest: everything else it keeps, as a sequence of tensors.
        recipe: how to put that together again.
        holes: the model's skeleton, without leaves.
    """

    rest: tuple[Buffer, ...]
    recipe: tuple[Any, ...]
    holes: Module

    def __as_saved__(self, constants: Constants, tensors: Tensors) -> ForeignState:
        device = torch.device("cpu")
        moments = {
            name: shaped(self.holes, below(tensors, f"moments.{name}"), device)
            for name in constant(constants, "moments", "keys")
        }
        count = sum(name.startswith("rest.") for name in tensors)
        rest: Any = tuple([torch.empty_like(tensors[f"rest.{k}"]) for k in range(count)])
        recipe = constant(constants, "", "recipe")
        return ForeignState(
            self.step, moments, (), {}, self.clock_of, self.labels, self.sizes, self.optimizer,
            rest, recipe, self.holes,
        )  # fmt: skip


@hint_at_habits
class Foreign:
    """A stateful optimizer class as ``init`` and a pure ``step``; see ``from_torch``."""

    def __init__(
        self, cls: type[torch.optim.Optimizer], closure: bool, hyper: dict[str, Any]
    ) -> None:
        self.cls = cls
        self.closure = closure
        self.hyper = hyper
        self.name = cls.__name__
        self._known = Known(f"from_torch({self.name}).step", self._stepped)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As it was pickled, also before there were steps in graphs."""
        self.__dict__.update(state)
        self.__dict__.setdefault("_known", Known(f"from_torch({self.name}).step", self._stepped))

    def __repr__(self) -> str:
        inner = "".join(f", {name}={value!r}" for name, value in self.hyper.items())
        return f"from_torch({self.name}{inner})"

    def init(self, model: Any) -> State:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state; most optimizers keep nothing before they step.

        Raises:
            TypeError: if ``model`` is not a module.
            ValueError: if there is nothing to train, or the class refuses an argument.
        """
        what = f"from_torch({self.name}).init"
        if dynamo.is_compiling():
            raise RuntimeError(
                f"{what} makes a stateful optimizer, which torch.compile cannot. Call it before: "
                f"state = opt.init(model); then compiled(model, state, x)"
            )
        refuse_transforms(what, "makes", functorch.transform_active())
        leaves, part = open_model(what, model)
        chosen = [k for k, t in enumerate(part.trainable) if t and leaves[k] is not None]
        if not chosen:
            raise ValueError(
                f"{what}: {type(model).__name__} has nothing to train: it holds no Parameter that "
                f"is not frozen. Unfreeze some: tree.select(model, 'frozen').unfreeze()"
            )
        for k in chosen:
            if isinstance(leaves[k], Lazy):
                leaves[k].refuse()
        params = {k: leaves[k].detach().clone() for k in chosen}
        start = torch.zeros((), dtype=torch.float32)
        return self._closed(model, start, self._fresh(params), self._made(params), params, {})

    def step(self, model: M, grads: Any, state: State, donate: bool = False) -> tuple[M, State]:
        """One step.

        Args:
            model: a module.
            grads: a module of its skeleton with gradients and holes. For an optimizer with a
                closure, a function of a model to ``(grads, loss)``, as ``func.grad_and_value``
                returns it.
            state: what ``init`` or the last ``step`` returned.
            donate: give away ``model`` and ``state``, as in other optimizers' ``step``. The class
                works on copies all the same.

        Returns:
            The model and the state.

        Raises:
            ValueError: if something does not fit the model.
            RuntimeError: within a transform or a derivative; with a closure, in compiled code.
        """
        what = f"from_torch({self.name}).step"
        check_given(what, state, "closure" if self.closure else "grads")
        donated = check_donation(what, donate)
        traced = dynamo.is_compiling()
        transformed = functorch.traced_level() if traced else functorch.transform_active()
        refuse_transforms(what, "runs", bool(transformed) or being_taken())
        if self.closure and traced:
            raise RuntimeError(
                f"{what} calls a function again and again, as long as the numbers ask for it, "
                f"which a graph cannot. Compile that function, and step in eager code"
            )
        if self.closure != (callable(grads) and not is_module(grads)):
            form = "lambda model: func.grad_and_value(loss)(model, x, y)"
            expected = f"a function of the model: {form}" if self.closure else "a tree of gradients"
            raise TypeError(f"{what} takes {expected}; got a {type(grads).__name__}")
        if traced:
            leaves, part = open_model(what, model)
            given = gather(what, model, leaves, part, grads)[1]
            return step_in_a_graph(self._known, model, given, state)
        made = self._stepped(model, grads, state)
        if donated:
            mark(model)
            mark(state)
        return made

    def _stepped(self, model: Any, grads: Any, state: State) -> tuple[Any, State]:
        """One step, in eager code or in the operator of a graph."""
        what = self._known.what
        leaves, part = open_model(what, model)
        with torch.no_grad():
            params = {
                k: leaf.detach().clone()
                for k, (leaf, t) in enumerate(zip(leaves, part.trainable, strict=True))
                if t and leaf is not None
            }
            fresh, optimizer = self._fresh(params), self._made(params)
            idle = self._restore(optimizer, state, params, model, part, what)
            if self.closure:
                optimizer.step(self._closure(what, grads, model, params))
            else:
                self._give(what, model, grads, params)
                optimizer.step()
        made = [params[k].detach() if k in params else leaf for k, leaf in enumerate(leaves)]
        next_model = unflatten_module(part, made, model._rng)
        step = state.step + 1
        return next_model, self._closed(model, step, fresh, optimizer, params, idle)

    # -- into the optimizer -----------------------------------------------------------------------

    def _made(self, params: dict[int, Tensor]) -> torch.optim.Optimizer:
        # Some classes write into the tensors that they are given for hyper-parameters.
        hyper = torch_pytree.tree_map_only(Tensor, Tensor.clone, self.hyper)
        optimizer = self.cls(list(params.values()), **hyper)
        groups: list[Any] = optimizer.param_groups
        groups[:] = [Group(group) for group in groups]
        return optimizer

    def _fresh(self, params: dict[int, Tensor]) -> tuple[list[Any], Look]:
        """The groups and attributes of a new optimizer.

        It is made before the one that steps, as it may put parameters into memory of its own.
        """
        optimizer = self._made(params)
        return list(optimizer.param_groups), look(optimizer, params)

    def _give(self, what: str, model: Any, grads: Any, params: dict[int, Tensor]) -> None:
        leaves, part = flatten_module(model)
        chosen, given = gather(what, model, leaves, part, grads)
        for param in params.values():
            param.grad = None
        for k in chosen:
            params[k].grad = given[k].detach().clone()

    def _closure(
        self, what: str, function: Callable[[Any], Any], model: Any, params: dict[int, Tensor]
    ) -> Callable[[], Any]:
        leaves, part = flatten_module(model)
        again: AbstractContextManager[object] = nullcontext()

        def closure() -> Any:
            nonlocal again
            now = [params[k].clone() if k in params else leaf for k, leaf in enumerate(leaves)]
            with again, torch.enable_grad():
                result = function(unflatten_module(part, now, model._rng))
            again = random.reuse()  # every call in a step draws the same numbers
            if not isinstance(result, tuple) or len(result) != 2:
                raise TypeError(
                    f"{what}: the function returns (grads, loss), as func.grad_and_value does; "
                    f"got a {type(result).__name__}"
                )
            self._give(what, model, result[0], params)
            return result[1].detach()

        return closure

    def _restore(
        self,
        optimizer: torch.optim.Optimizer,
        state: Any,
        params: dict[int, Tensor],
        model: Any,
        part: Any,
        what: str,
    ) -> dict[int, dict[str, Any]]:
        """Fills the optimizer; returns what belongs to leaves that are not trained now."""
        if type(state) is not ForeignState or state.optimizer != self.name:
            raise ValueError(
                f"{what}: the state was not made by this optimizer. "
                f"Make one: state = opt.init(model)"
            )
        if len(state.sizes) == part.n_leaves:
            check_sizes(what, model, flatten_module(model)[0], list(params), state.sizes)
        held = unpack(state.recipe, [tensor.clone() for tensor in state.rest], params)
        for name, value in held["attributes"].items():
            setattr(optimizer, name, value)
        per_leaf: dict[int, dict[str, Any]] = {k: {} for k in params}
        kinds = held["kinds"]
        for name, moments in state.moments.items():
            for k, leaf in enumerate(kept_for(part, moments, name, what)):
                if leaf is not None:
                    kind = kinds.get((name, k))
                    value = copied(leaf, params.get(k)) if kind is None else cast(kind, leaf)
                    per_leaf.setdefault(k, {})[name] = value
        for k, others in held["others"].items():
            per_leaf.setdefault(k, {}).update(others)
        optimizer.state.clear()
        idle = {}
        for k, values in per_leaf.items():
            # In the order in which the optimizer keeps them.
            ordered = {name: values[name] for name in held["order"].get(k, tuple(values))}
            if k not in params:
                idle[k] = ordered
            elif ordered:
                optimizer.state[params[k]] = ordered
        optimizer.state.update(held["shared"])
        for group, written in zip(optimizer.param_groups, held["groups"], strict=True):
            group.update(written)
        return idle

    # -- out of the optimizer ---------------------------------------------------------------------

    def _closed(
        self,
        model: Any,
        step: Tensor,
        fresh: tuple[list[Any], Look],
        optimizer: torch.optim.Optimizer,
        params: dict[int, Tensor],
        idle: dict[int, dict[str, Any]],
    ) -> ForeignState:
        """Takes what the optimizer keeps into a tree."""
        leaves = flatten_module(model)[0]
        count = len(leaves)
        columns: dict[str, list[Any]] = {}
        kinds: dict[Any, Any] = {}
        others: dict[int, dict[str, Any]] = {}
        order: dict[int, tuple[str, ...]] = {}
        kept = {k: optimizer.state.get(param, {}) for k, param in params.items()} | idle
        what = f"from_torch({self.name})"
        pairs = zip(optimizer.param_groups, fresh[0], strict=True)
        groups = [changes(now, old) for now, old in pairs]
        attributes = changed(optimizer, fresh[1], params, what)
        own = set(map(id, params.values()))
        shared = {key: value for key, value in optimizer.state.items() if id(key) not in own}
        check_apart(what, model, params, kept, *beside(optimizer, groups, attributes, shared))
        for k, values in kept.items():
            order[k] = tuple(values)
            for name, value in values.items():
                if type(value) in (bool, int, float):
                    kinds[name, k] = type(value).__name__
                    leaf = torch.tensor(value, dtype=_WIDE.get(type(value)))
                elif isinstance(value, Tensor):
                    leaf = value.detach().clone()
                else:
                    others.setdefault(k, {})[name] = value
                    continue
                columns.setdefault(name, [None] * count)[k] = leaf
        held = {
            "kinds": kinds, "others": others, "groups": groups, "order": order,
            "attributes": attributes, "shared": shared,
        }  # fmt: skip
        recipe, rest = pack(held, what, params)
        moments = {name: around(model, column) for name, column in columns.items()}
        holes = around(model, [None] * count)
        clock_of = tuple([0 if k in params else NEVER for k in range(count)])
        sizes = tuple([size_of(leaf) for leaf in leaves])
        kept_rest: Any = tuple(rest)
        return ForeignState(
            step, moments, (), {}, clock_of, (0,) * count, sizes, self.name,
            kept_rest, recipe, holes,
        )  # fmt: skip


_WIDE = {float: torch.float64}


@answered("optim.from_torch", "optim.from_torch(torch.optim.SGD, lr=0.1)")
def from_torch(cls: type[torch.optim.Optimizer], *, closure: bool = False, **hyper: Any) -> Foreign:
    """Any optimizer class of ``torch.optim``'s kind as ``init`` and a pure ``step``.

    The class is constructed and run on private copies at every step. What it keeps per parameter,
    in its groups, beside them in its state and in attributes of its own is carried as a tree:
    tensors, numbers and strings, in lists and dicts. It takes the time of the class and the copies.
    What it draws comes from torch's global generator.

    In ``parallax.compile``, a step is one operator, which runs the class as eager code does, with
    the very bits. The first state and the later ones, which hold more, make a graph each. A state
    must not change what it holds by its numbers, and ``init`` stands outside.

    Args:
        cls: a subclass of ``torch.optim.Optimizer``.
        closure: whether its ``step`` needs a closure, as that of L-BFGS. Then the pure ``step``
            takes a function of a model to ``(grads, loss)`` in the place of gradients.
        **hyper: the arguments of the class after the parameters.

    Returns:
        The optimizer.

    Raises:
        TypeError: if ``cls`` is not an optimizer class, or has modes; by ``step``, if it keeps
            anything else, such as another optimizer.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.from_torch(torch.optim.SGD, lr=0.5), Point(torch.ones(1))
        >>> opt.step(point, Point(torch.ones(1)), opt.init(point))[0].at
        tensor([0.5000])
    """
    given: Any = cls
    if not isinstance(given, type) or not issubclass(given, torch.optim.Optimizer):
        raise TypeError(
            f"from_torch takes a subclass of torch.optim.Optimizer, got {shown(cls)}. "
            f"Write optim.from_torch(torch.optim.SGD, lr=0.1)"
        )
    if callable(getattr(cls, "train", None)) and callable(getattr(cls, "eval", None)):
        raise TypeError(
            f"from_torch: {cls.__name__} has modes, train() and eval(), which change the weights, "
            f"and a pure step has none. Use optim.AdamWScheduleFree or optim.SGDScheduleFree, "
            f"whose averaged(model, state) is the model to evaluate"
        )
    check_kind("from_torch", "closure", closure, "bool", True)
    check_names(cls, hyper)
    return Foreign(cls, closure, hyper)
