"""Bound methods and partials as containers: what they are bound to stands below them.

Only Parallax's own traversals take them apart: for others that use optree or torch's pytree they
are leaves, as they were.
"""

from __future__ import annotations

import functools
from types import FunctionType, MethodType
from typing import Any

import optree
from torch import nn

from parallax._compat.dynamo import is_compiling
from parallax.core.registry import NAMESPACE
from parallax.tree.carriers import holds_tensor

__all__ = ["CALLS", "attributes_of", "bound", "opened_call"]

CALLS = frozenset({MethodType, functools.partial})
"""The classes; instances of their subclasses are leaves."""


class Callee:
    """The function of a bound method or partial, which is a constant.

    Attributes:
        func: the function; ``None`` where it is a tree, and a child.
        attributes: what was set on a partial, such as its name; carried, never compared.
    """

    __slots__ = ("attributes", "func")

    def __init__(self, func: Any, attributes: dict[str, Any] | None = None) -> None:
        self.func = func
        self.attributes = attributes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Callee) and bool(self.func == other.func)

    def __hash__(self) -> int:
        return hash(Callee)  # the function may not hash

    def __repr__(self) -> str:
        return str(getattr(self.func, "__qualname__", self.func))


class Uncalled:
    """What stands for a hole, or for anything else that Python would not bind, until it is taken.

    Attributes:
        value: what it stands for.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raises: there is nothing to call."""
        raise TypeError(f"a {type(self.value).__name__} in the place of what is called")


def bound(func: Any, owner: Any) -> Any:
    """The bound method of an object."""
    if is_compiling():  # dynamo does not know the class of methods as a function
        return func.__get__(owner, type(owner))
    return MethodType(func, owner)


def attributes_of(call: Any) -> dict[str, Any] | None:
    """What was set on a partial, if anything."""
    try:
        return call.__dict__ or None
    except AttributeError:  # dynamo knows none of one that it has made
        return None


def opened_call(call: Any) -> tuple[tuple[Any, ...], tuple[str, ...], Callee]:
    """The children of a bound method or partial, their names, and the function."""
    if type(call) is MethodType:
        return (_taken(call.__self__),), ("__self__",), Callee(call.__func__)
    func, below = _taken(call.func), (call.args, call.keywords)
    attributes = attributes_of(call)
    if func is call.func and _is_constant(func):
        return below, ("args", "keywords"), Callee(func, attributes)
    return (func, *below), ("func", "args", "keywords"), Callee(None, attributes)


def _method(callee: Callee, children: Any) -> Any:
    (owner,) = children
    return bound(callee.func, Uncalled(None) if owner is None else owner)


def _partial(callee: Callee, children: Any) -> Any:
    *func, args, keywords = children
    called = func[0] if func else callee.func
    made = functools.partial(called if callable(called) else Uncalled(called), *args, **keywords)
    if callee.attributes:
        made.__dict__.update(callee.attributes)
    return made


def _flatten(call: Any) -> tuple[tuple[Any, ...], Callee, tuple[str, ...]]:
    children, names, callee = opened_call(call)
    return children, callee, names


def _taken(value: Any) -> Any:
    return value.value if type(value) is Uncalled else value


def _is_constant(func: Any) -> bool:
    """Whether the function of a partial is no tree itself, and hides no tensor."""
    cls = type(func)
    if hasattr(cls, "__layout__") or cls in CALLS or isinstance(func, nn.Module):
        return False
    if is_compiling():
        return True
    if cls is FunctionType and not (func.__closure__ or func.__defaults__ or func.__kwdefaults__):
        return True
    return not holds_tensor(func)


_register: Any = optree.register_pytree_node  # whose types know classes of containers only
_register(MethodType, _flatten, _method, namespace=NAMESPACE)
_register(functools.partial, _flatten, _partial, namespace=NAMESPACE)
