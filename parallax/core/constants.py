"""How constants are compared: by type and value, so that ``1``, ``True`` and ``1.0`` differ."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import torch
from torch import Tensor

from parallax.core.fields import Lazy
from parallax.core.nodes import NODES, is_module

__all__ = ["constant_key", "identity_key"]

_PLAIN = (int, str, bool, bytes, type(None), type(Ellipsis))


def constant_key(value: Any, where: str) -> Any:
    """A hashable key that two constants share if and only if they are the same constant.

    Floats compare by their bits (``nan`` equals itself, ``0.0`` and ``-0.0`` differ), partials
    and frozen dataclasses by their parts, functions and other objects by their own ``==``. What is
    or holds a tensor, module or array, or does not hash, is refused; ``where`` is the field in
    error messages, as ``Class.field``.
    """
    cls = type(value)
    if cls in _PLAIN:
        return cls, value
    if isinstance(value, float):
        return cls, value.hex()
    if cls is complex:
        return cls, value.real.hex(), value.imag.hex()
    if isinstance(value, (tuple, frozenset)):
        keys = (constant_key(item, where) for item in value)
        return cls, tuple(keys) if isinstance(value, tuple) else frozenset(keys)
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(sorted(value.keywords.items())))
        return cls, constant_key(parts, where)
    _refuse_hidden(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        compared = [f.name for f in dataclasses.fields(value) if f.compare]
        inside = {f"{where}.{name}": getattr(value, name, None) for name in compared}
        parameters = cls.__dataclass_params__
        if parameters.frozen and parameters.eq:
            return cls, tuple(constant_key(part, at) for at, part in inside.items())
        for at, part in inside.items():
            _refuse_hidden(part, at)
    try:
        hash(value)
    except TypeError:
        raise TypeError(_unhashable(value, where)) from None
    if _is_array_scalar(value):
        scalar: Any = value
        return cls, scalar.tobytes()
    return cls, value


def identity_key(value: Any) -> Any:
    """A key that two values share only if they are the same object or equal plain values.

    It holds as long as both are alive. Unlike ``constant_key`` it never calls ``==`` of a user's
    class: two equal objects have two keys.
    """
    cls = type(value)
    if cls in _PLAIN:
        return cls, value
    if cls is float:
        return cls, value.hex()
    if cls is complex:
        return cls, value.real.hex(), value.imag.hex()
    if cls is tuple or cls is torch.Size:
        return cls, *map(identity_key, value)
    if cls is frozenset:
        return cls, frozenset(map(identity_key, value))
    if cls is range or cls is torch.device:
        return cls, repr(value)
    return cls, id(value)


def _is_array_scalar(value: Any) -> bool:
    """Whether a value is a NumPy scalar, which arithmetic easily returns instead of a number."""
    if isinstance(value, type) or type(value).__hash__ is None:
        return False
    return hasattr(value, "__array__") and not value.shape


def _refuse_hidden(value: Any, where: str, via: str = "") -> None:
    """Raises if a constant is, or visibly wraps, an object with tensors, which would be lost."""
    name, cls = _field_of(where), type(value).__name__
    given = f"{where} is declared as a constant and was given {via}"
    if isinstance(value, Tensor):
        raise TypeError(
            f"{given}a tensor. Write '{name}: Parameter' (trained) or '{name}: Buffer' (never "
            f"trained)."
        )
    if isinstance(value, torch.nn.Module):
        raise TypeError(
            f"{where} was given {via}{cls}, a mutable torch.nn.Module, whose parameters no tree "
            f"would see. Write '{name}: Module' and assign bridge.lift(...) of it, or a "
            f"parallax.Module."
        )
    if is_module(value):
        raise TypeError(
            f"{given}the module {cls}. Write '{name}: Module' (or '{name}: {cls}'; "
            f"'tuple[Module, ...]' for several)."
        )
    if isinstance(value, Lazy):
        raise TypeError(f"{given}a {cls} declaration. Write '{name}: {cls}'.")
    if type(value) in NODES:
        raise TypeError(
            f"{given}{cls}, a registered node. Write '{name}: {cls}', and register the class "
            f"before the module class that names it."
        )
    if not isinstance(value, type) and hasattr(value, "__array__") and not _is_array_scalar(value):
        raise TypeError(
            f"{given}{cls}, an array. Write '{name}: Buffer' and assign torch.as_tensor(value)."
        )
    if isinstance(value, (types.MethodType, types.BuiltinMethodType)):
        _refuse_hidden(value.__self__, where, f"{via}a method of ")
    wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
    if wrapped is not None and wrapped is not value:
        _refuse_hidden(wrapped, where, f"{via}a wrapper of ")


def _field_of(where: str) -> str:
    """The name of the field in ``Class.field.inside``."""
    return where.split(".")[1] if "." in where else "name"


def _unhashable(value: Any, where: str) -> str:
    name = _field_of(where)
    items = list(value.values()) if isinstance(value, dict) else value
    if isinstance(value, (dict, list)) and any(
        [is_module(item) or isinstance(item, Tensor) for item in items]
    ):
        kind = "Module" if any([is_module(item) for item in items]) else "Parameter"
        of = f"dict[str, {kind}]" if isinstance(value, dict) else f"Sequence[{kind}]"
        return (
            f"{where} is declared as a constant and was given a {type(value).__name__} that holds "
            f"a {kind.lower()}. Write '{name}: {of}'."
        )
    hints: dict[type, str] = {list: "tuple", set: "frozenset", bytearray: "bytes"}
    hint = hints.get(type(value)) if where.count(".") == 1 else None
    line = (
        f"'{name}: {hint} = field(converter={hint})'"
        if hint
        else "it with a tuple, a frozen dataclass or another hashable value"
    )
    return (
        f"{where} is a constant, part of the structure, and must be hashable; "
        f"got {type(value).__name__}. Write {line}."
    )
