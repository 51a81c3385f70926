"""Marks donated trees, so that using one afterwards raises an error."""

from __future__ import annotations

from typing import Any, NoReturn

import optree
from torch import Tensor

from parallax._compat import dynamo, functorch, registries
from parallax.core.nodes import NODES, Instance, is_module

__all__ = ["DonatedError", "check_donation", "mark"]


class DonatedError(RuntimeError):
    """A tree was used after it was given to ``step(..., donate=True)``.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> old, opt = Point(torch.ones(2)), optim.SGD(lr=0.5)
        >>> new, state = opt.step(old, Point(torch.ones(2)), opt.init(old), donate=True)
        >>> new.at
        tensor([0.5000, 0.5000])
        >>> old.at
        Traceback (most recent call last):
        parallax.optim.donate.DonatedError: Point was given to step(..., donate=True), which...
    """


class _DonatedMeta(type):
    @property
    def __layout__(cls) -> NoReturn:
        # Every traversal reads this first, to find out whether this is a module.
        raise DonatedError(_message("a module"))


def _message(name: str) -> str:
    return (
        f"{name} was given to step(..., donate=True), which reused its memory, so it is gone. "
        f"Use what step returned: model, state = opt.step(model, grads, state, donate=True); "
        f"or leave donate out to keep the old tree"
    )


class Donated(Instance, metaclass=_DonatedMeta):
    """The class of a module whose memory was given away: every use of it raises."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__dict__", "__call__"):
            return object.__getattribute__(self, name)
        raise DonatedError(_message(_name(self)))

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise DonatedError(_message(_name(self)))

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise DonatedError(_message(_name(self)))

    def __reduce__(self) -> NoReturn:
        raise DonatedError(_message(_name(self)))

    def __repr__(self) -> str:
        return f"<{_name(self)}, given to step(..., donate=True)>"


def _name(donated: Any) -> str:
    spec = object.__getattribute__(donated, "__dict__").get("_spec")
    return "a module" if spec is None else str(spec.cls.__name__)


def _flatten(donated: Any) -> NoReturn:
    raise DonatedError(_message(_name(donated)))


def _unflatten(children: Any, metadata: Any) -> NoReturn:
    raise DonatedError(_message("a module"))


# Raw torch and optree must not treat it as a leaf either.
registries.register_optree_node(Donated, _flatten, _unflatten, entry=optree.AutoEntry)
registries.register_torch_node(
    Donated,
    _flatten,
    _unflatten,
    _flatten,
    name="parallax.optim.Donated",
    dump_context=_flatten,
    load_context=_flatten,
)
_set_class = object.__dict__["__class__"].__set__  # past the __setattr__ that freezes modules


def check_donation(what: str, donate: Any, differentiable: bool = False) -> None:
    """Raises if ``donate`` is set where memory cannot be reused.

    Raises:
        TypeError: if ``donate`` is not a bool.
        ValueError: if it is true in compiled, transformed or differentiable code.
    """
    if donate is False:
        return
    if donate is not True:
        raise TypeError(f"{what}: donate must be True or False, got {donate!r}")
    reason = ""
    if dynamo.is_compiling():
        reason = "torch.compile plans the memory of a compiled step itself"
    elif functorch.transform_active():
        reason = "a torch.func transform is running, whose values cannot be overwritten"
    elif differentiable:
        reason = "a differentiable step keeps its inputs for the gradient"
    if reason:
        raise ValueError(f"{what}: donate=True is for eager steps, and {reason}. Leave it out")


def mark(model: Any, *others: Any) -> None:
    """Makes a module with every module below it unusable; of the others only themselves.

    The objects change their class, so that their contents cannot be reached any more. A module that
    is also part of another tree becomes unusable there too, as its memory was reused.
    """
    for value in others:
        _set_class(value, Donated)
    stack = [model]
    while stack:
        value = stack.pop()
        cls = type(value)
        if cls is Donated or cls is Tensor or value is None:
            continue
        if is_module(value):
            below = cls.__layout__.nested
            if below:
                stack += map(value.__dict__.__getitem__, below)
            _set_class(value, Donated)
        elif isinstance(value, tuple):
            stack += [item for item in value if type(item) is not Tensor]
        elif isinstance(value, dict):
            stack += [item for item in value.values() if type(item) is not Tensor]
        elif cls in NODES:
            stack += NODES[cls].flatten(value)[0]
