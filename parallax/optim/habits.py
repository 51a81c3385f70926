"""What optimizers of torch and optax do that these do not, and what to write instead.

Nothing here runs in a correct call: names are attributes that raise, and the arguments that a
call of ``step`` lacks are found where ``step`` checks its arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax._errors.arguments import shown
from parallax._errors.habits import Habit
from parallax.core.nodes import is_module

__all__ = ["HABITS", "MISSING", "check_given", "check_no_parameters", "hint_at_habits"]

_THIRD = {"grads": "its gradients", "closure": "a function of a model to its gradients"}
C = TypeVar("C", bound=type)

_STEP = "model, state = opt.step(model, grads, state)"
HABITS = {
    "zero_grad": "grads = func.grad(loss)(model, x); gradients are new values each time",
    "update": _STEP,
    "state_dict": "io.save({'model': model, 'state': state}, path), where state is what step "
    "returned",
    "param_groups": "opt.replace(lr=...), and groups={'**.bias': {'lr': ...}} in the constructor",
    "add_param_group": "groups={'**.bias': {'lr': ...}} in the constructor",
}
"""What to write, by name."""


class _Missing:
    def __repr__(self) -> str:
        return "nothing"


MISSING: Any = _Missing()
"""What stands for an argument of ``step`` that was not given."""


def hint_at_habits(cls: C) -> C:
    """Has a class of optimizers say what to write for these names, and in calls of ``step()``.

    Its ``step`` and ``init`` get defaults, which are refused as models and states;
    ``inspect.signature`` and type checkers show them without.
    """
    for name, instead in HABITS.items():
        if not hasattr(cls, name):
            setattr(cls, name, Habit(name, instead, "optimizers are immutable values"))
    for verb in {"init", "step"} & vars(cls).keys():
        method: Any = vars(cls)[verb]
        method.__signature__ = inspect.signature(method)
        parameters = method.__signature__.parameters.values()
        given = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        needed = sum([p.default is inspect.Parameter.empty for p in given]) - 1  # without self
        method.__defaults__ = (MISSING,) * needed + (method.__defaults__ or ())
    return cls


def check_given(what: str, argument: Any, third: str = "grads") -> None:
    """Raises if an argument of a ``step``, or of ``init``, was not given.

    Raises:
        TypeError: with the line to write.
    """
    if argument is MISSING and what.endswith(".init"):
        raise TypeError(f"{what} takes a model. Write: state = opt.init(model)")
    if argument is MISSING:
        raise TypeError(
            f"{what} takes a model, {_THIRD[third]} and the state that opt.init(model) or the last "
            f"step returned. Write: model, state = opt.step(model, {third}, state)"
        )


def check_no_parameters(cls: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises if a constructor is given what one of torch takes first: a model, or its tensors.

    Raises:
        TypeError: with the two lines to write.
    """
    given = kwargs.get("params") or kwargs.get("model") or next(iter(args), None)
    if cls.names[0] == "lr" and _holds_parameters(given):
        lr = kwargs.get("lr", args[1] if len(args) > 1 else cls.lr)
        raise TypeError(
            f"optim.{cls.__name__} takes no model and no parameters, got {shown(given)}. "
            f"Write: opt = optim.{cls.__name__}(lr={shown(lr)}); state = opt.init(model)"
        )


def _holds_parameters(value: Any) -> bool:
    if is_module(value) or isinstance(value, (torch.nn.Module, Iterator)):
        return True
    items = value if isinstance(value, (list, tuple)) else ()
    return any([isinstance(item, (Tensor, dict, tuple)) for item in items])
