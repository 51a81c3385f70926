"""Constants whose methods run as they are while dynamo traces.

torch calls a class of such constants an opaque value type (2.13), or a custom class of type
"constant" (2.14). An instance is guarded by ``==`` where a trace meets it, and is put back into the
code of the graph by reference. Its attributes and methods are asked for on the real object, and
what they give is a constant of the trace again.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, ParamSpec, TypeVar, cast

from torch._library import opaque_object

from parallax._compat import in_trace
from parallax._compat.dynamo import is_compiling

__all__ = ["constant_while_tracing", "real"]

C = TypeVar("C", bound=type)
P = ParamSpec("P")
R = TypeVar("R")


def constant_while_tracing(cls: C) -> C:
    """Has instances of an immutable class be constants while dynamo traces, as a decorator.

    Instances of a class without ``__eq__`` are compared by identity, and torch is told so. The
    class gets ``itself()``: what a trace found in an argument or a global is guarded wherever it
    is looked into; ``value.itself()`` is not.
    """
    use_real = opaque_object.MemberType.USE_REAL
    dynamic: Any = cls
    if dynamic.__eq__ is object.__eq__:
        dynamic.__eq__ = _same
    dynamic.__fx_repr__ = dynamic.__dict__.get("__fx_repr__", _named)
    dynamic.itself = _itself
    kinds = (FunctionType, functools.cached_property)
    parts = {name: part for base in reversed(cls.__mro__) for name, part in vars(base).items()}
    members = {
        name: use_real for name, part in parts.items() if isinstance(part, kinds) and name[0] != "_"
    }
    if hasattr(opaque_object, "register_custom_class"):  # from torch 2.14 on
        opaque_object.register_custom_class(cls, typ="constant", members=members)
    else:
        opaque_object.register_opaque_type(cls, typ="value", members=members)
    return cls


def _same(self: Any, other: object) -> bool:
    return self is other


def _itself(self: Any) -> Any:
    """The very object; a constant without a guard while dynamo traces."""
    return self


def _named(self: Any) -> tuple[str, dict[str, Any]]:
    """How generated code of a graph names the object."""
    name = f"parallax_constant_{id(self)}"
    return name, {name: self}


@constant_while_tracing
class _Function:
    """A function whose calls are not traced into."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def run(self, *args: Any) -> Any:
        """What the function gives."""
        return self.function(*args)


def real(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function of constants be called as it is while dynamo traces, as a decorator.

    Arguments, by position, and results are constants: structures, numbers, strings, classes,
    functions, and tuples, lists and dicts of them. A number for which dynamo has a symbol, as it
    differed between two calls, becomes a constant of the trace.
    """
    constant = _Function(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if is_compiling():
            in_trace.at_trace()(in_trace.fix_numbers)
        return constant.run(*args)

    return cast(Callable[P, R], call)
