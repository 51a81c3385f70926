"""Marks donated trees, so that using one afterwards raises an error."""

from __future__ import annotations

from typing import Any, NoReturn

import optree
from torch import Tensor

from parallax._compat import registries
from parallax.core.module_structure import modules_in
from parallax.core.nodes import NODES, Instance, dict_of, is_module
from parallax.tree.calls import CALLS, opened_call

__all__ = ["DonatedError", "mark", "mark_all"]


class DonatedError(RuntimeError):
    """A tree was used after it was given away.

    It was given to ``opt.step(..., donate=True)``, or to a function of ``compile(donate=...)``.

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
        parallax.tree.donated.DonatedError: Point was given to step(..., donate=True), which...
    """


class _DonatedMeta(type):
    @property
    def __layout__(cls) -> NoReturn:
        # Every traversal reads this first, to find out whether this is a module.
        raise DonatedError(
            "a module was given away with donate, which reused its memory, so it is gone. Use what "
            "was returned instead, or leave donate out to keep the old tree"
        )


class Donated(Instance, metaclass=_DonatedMeta):
    """The class of a module whose memory was given away: every use of it raises."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in ("__dict__", "__call__"):
            return object.__getattribute__(self, name)
        return _refuse(self)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(self)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        _refuse(self)

    def __reduce__(self) -> NoReturn:
        _refuse(self)

    def __repr__(self) -> str:
        name, taker = _described(self)
        return f"<{name}, given to {taker}>"


class DonatedTensor(Tensor):
    """The class of a tensor, outside of modules, whose memory was given away."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises, whatever is done with it."""
        raise DonatedError(
            "a tensor was given away with donate, which reused its memory, so it is gone. Use what "
            "was returned instead, or leave donate out to keep it"
        )


def _refuse(donated: Any) -> NoReturn:
    name, taker = _described(donated)
    use = f"what {taker} returned"
    if taker == _STEP:
        use = "what step returned: model, state = opt.step(model, grads, state, donate=True)"
    raise DonatedError(
        f"{name} was given to {taker}, which reused its memory, so it is gone. "
        f"Use {use}; or leave donate out to keep the old tree"
    )


def _described(donated: Any) -> tuple[str, str]:
    """The name of its class, and what it was given to."""
    held = object.__getattribute__(donated, "__dict__")
    spec = held.get("_spec")
    name = "a module" if spec is None else str(spec.cls.__name__)
    return name, held.get(_TAKER, _STEP)


_TAKER = "_taker"  # where a module keeps what it was given to, if it is no step
_STEP = "step(..., donate=True)"


def _unflatten(*_: Any) -> NoReturn:
    raise DonatedError("the structure of a tree that was given away builds nothing")


# Raw torch and optree should not take it for a leaf either.
registries.register_optree_node(Donated, _refuse, _unflatten, entry=optree.AutoEntry)
registries.register_torch_node(
    Donated,
    _refuse,
    _unflatten,
    _refuse,
    name="parallax.optim.Donated",
    dump_context=_refuse,
    load_context=_refuse,
)
_set_class = object.__dict__["__class__"].__set__  # past the __setattr__ that freezes modules


def mark(model: Any, *others: Any, taker: str | None = None) -> None:
    """Makes a module with every module below it unusable; of the others only themselves.

    The objects change their class, so that their contents cannot be reached any more. A module that
    is also part of another tree becomes unusable there too, as its memory was reused.

    Args:
        model: a module, or ``None``.
        *others: modules.
        taker: what they were given to, for the error; by default the step of an optimizer.
    """
    modules = () if model is None or type(model) is Donated else modules_in(model)
    for value in (*others, *modules):
        if taker is not None:
            dict_of(value)[_TAKER] = taker
        _set_class(value, Donated)


def mark_all(value: Any, taker: str) -> None:
    """Makes an argument unusable: its modules, and its tensors that are in no module."""
    cls = type(value)
    if cls is Donated:
        return
    if cls is Tensor:
        value.__class__ = DonatedTensor
    elif is_module(value):
        mark(value, taker=taker)
    else:
        for item in _opened(value):
            mark_all(item, taker)


def _opened(value: Any) -> list[Any]:
    """What a container holds; nothing for any other value."""
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if type(value) in CALLS:
        return list(opened_call(value)[0])
    return list(NODES[type(value)].flatten(value)[0]) if type(value) in NODES else []
