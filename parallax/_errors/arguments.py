"""Checks of arguments that all rooms share, and how errors show a wrong value.

Each error names the function and the argument, what was expected and given, and what to write. In
each check ``what`` is the function or class as users call it, and ``name`` the argument.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import wraps
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

__all__ = ["answer_fields", "answered", "check_dtype", "check_flags", "check_function",
           "check_module", "device_of", "shown"]  # fmt: skip

F = TypeVar("F", bound=Callable[..., Any])

_LONGEST = 60  # letters
_MOST = 6  # items


def answered(what: str, write: str) -> Callable[[F], F]:
    """Has a function say what to write when it is given too many or too few arguments.

    For functions that are called a few times in a program: the wrapper is a further call.
    """

    def around(function: F) -> F:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():  # dynamo has its own text, and no traceback
                return function(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            except TypeError as error:
                trace = error.__traceback__
                if trace is not None and trace.tb_next is not None:
                    raise  # from within, so that it was called as it should be
                told = str(error).partition("() ")[2] or str(error)
            raise TypeError(f"{what} {told}. Write {write}")

        return cast(F, call)

    return around


def answer_fields(room: str, names: dict[str, Any]) -> None:
    """Has the dataclasses of a package say which fields they have, when they are given others.

    Args:
        room: the package, as users write it.
        names: its public names, and what they are.
    """
    for name, cls in names.items():
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            continue
        fields = [field for field in dataclasses.fields(cls) if field.init]
        told = [
            field.name
            if field.default is dataclasses.MISSING
            else f"{field.name}={field.default!r}"
            for field in fields
        ]
        initialize: Any = cls.__init__
        written = answered(f"{room}.{name}", f"{room}.{name}({', '.join(told)})")(initialize)
        setattr(cls, "__init__", written)  # noqa: B010  # checkers want no method assigned


def check_dtype(what: str, dtype: Any) -> None:
    """Raises a ``TypeError`` unless ``dtype`` is one, or ``None`` for a default."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(
            f"{what}(dtype=): expected a torch.dtype or None, got {shown(dtype)}. "
            f"Write dtype=torch.float32"
        )


def device_of(what: str, device: Any) -> torch.device:
    """The device of a device, name or number; a ``ValueError`` if it is not on this machine."""
    try:
        found = torch.device(device)
        if found.type not in ("cpu", "meta"):
            torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{what}(device=): got {shown(device)}, and there is no such device here: {reason}. "
            f"Give one such as 'cpu' or 'cuda:0'"
        ) from None
    return found


def check_flags(what: str, **flags: Any) -> None:
    """Raises a ``TypeError`` unless each value is a bool: ``"no"`` would count as true."""
    for name, value in flags.items():
        if type(value) is not bool:
            raise TypeError(
                f"{what}({name}=): expected a bool, got {shown(value)}. Write {name}=True or "
                f"{name}=False"
            )


def check_function(what: str, fn: Any, write: str, name: str = "fn") -> None:
    """Raises a ``TypeError`` unless ``fn`` can be called; ``write`` is a call that is right."""
    if not callable(fn):
        raise TypeError(
            f"{what}({name}=): expected a function, got {shown(fn)}. Give one, such as {write}"
        )


def check_module(what: str, module: Any, name: str = "module") -> None:
    """Raises a ``TypeError`` unless ``module`` is one of Parallax."""
    if not hasattr(type(module), "__layout__"):  # as ``nodes.is_module`` of the core
        lift = isinstance(module, torch.nn.Module)
        remedy = "Lift it first: bridge.lift(module)" if lift else "Give one: nn.Linear(2, 3)"
        raise TypeError(
            f"{what}({name}=): expected a parallax.Module, got {shown(module)}. {remedy}"
        )


def shown(value: Any) -> str:
    """How an error shows a value: the value itself if that is short, otherwise its class."""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return f"{value!r:.{_LONGEST}}"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}, which is a torch.nn.Module"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType)):
        return f"the function {value.__name__}"
    if isinstance(value, (torch.dtype, torch.device)):
        return repr(value)
    if type(value) in (tuple, list) and len(value) <= _MOST:
        items = ", ".join([shown(item) for item in value])
        return f"[{items}]" if type(value) is list else f"({items}{',' * (len(value) == 1)})"
    return f"a {type(value).__name__}"
