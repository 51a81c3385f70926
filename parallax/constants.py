"""How constants are compared: by type and value, so that ``1``, ``True`` and ``1.0`` differ."""

from __future__ import annotations

import dataclasses
import functools
import types
from typing import Any

import torch
from torch import Tensor

from parallax.fields import Lazy
from parallax.nodes import NODES

__all__ = ["constant_key"]

_PLAIN = (int, str, bool, bytes, type(None), type(Ellipsis))


def constant_key(value: Any, where: str) -> Any:
    """A hashable key that two constants share if and only if they are the same constant.

    Floats compare by their bits (``nan`` equals itself, ``0.0`` and ``-0.0`` differ), partials
    by their parts, functions and other objects by their own ``==``.

    Args:
        value: the constant.
        where: the field, for error messages, as ``Class.field``.

    Returns:
        The key.

    Raises:
        TypeError: if the value is or holds a tensor, module or array, or does not hash.
    """
    cls = type(value)
    if cls in _PLAIN:
        return cls, value
    if cls is float:
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
        for item in dataclasses.fields(value):
            _refuse_hidden(getattr(value, item.name, None), f"{where}.{item.name}")
    try:
        hash(value)
    except TypeError:
        raise TypeError(_unhashable(value, where)) from None
    return cls, value


def _refuse_hidden(value: Any, where: str) -> None:
    """Raises if a constant is, or visibly wraps, something whose tensors would be lost."""
    name = where.rsplit(".", 1)[-1]
    if isinstance(value, Tensor):
        raise TypeError(
            f"{where} is declared as a constant and was given a tensor. "
            f"Write '{name}: Parameter' (trained) or '{name}: Buffer' (never trained)."
        )
    if isinstance(value, torch.nn.Module):
        raise TypeError(
            f"{where} was given {type(value).__name__}, a mutable torch.nn.Module, whose "
            f"parameters no tree would see. Write a parallax.Module with '{name}: Module'."
        )
    if hasattr(type(value), "__layout__"):
        raise TypeError(
            f"{where} is declared as a constant and was given the module "
            f"{type(value).__name__}. Write '{name}: Module' "
            f"(or '{name}: {type(value).__name__}'; 'tuple[Module, ...]' for several)."
        )
    if isinstance(value, Lazy):
        raise TypeError(
            f"{where} is declared as a constant and was given a {type(value).__name__} "
            f"declaration. Write '{name}: {type(value).__name__}'."
        )
    if type(value) in NODES:
        raise TypeError(
            f"{where} is declared as a constant and was given {type(value).__name__}, a "
            f"registered node. Write '{name}: {type(value).__name__}', and register the class "
            f"before the module class that names it."
        )
    if not isinstance(value, type) and hasattr(value, "__array__"):
        raise TypeError(
            f"{where} is declared as a constant and was given {type(value).__name__}, an array. "
            f"Write '{name}: Buffer' and assign torch.as_tensor(value)."
        )
    if isinstance(value, types.MethodType):
        _refuse_hidden(value.__self__, f"{where} (a method)")
    wrapped = getattr(value, "__wrapped__", None) if callable(value) else None
    if wrapped is not None and wrapped is not value:
        _refuse_hidden(wrapped, f"{where} (a wrapped function)")


def _unhashable(value: Any, where: str) -> str:
    hints: dict[type, str] = {list: "tuple", set: "frozenset"}
    hint = hints.get(type(value))
    line = (
        f"{where.rsplit('.', 1)[-1]}: {hint} = field(converter={hint})"
        if hint
        else "a tuple, a frozen dataclass or another hashable value"
    )
    return (
        f"{where} is a constant, part of the structure, and must be hashable; "
        f"got {type(value).__name__}. Write {line}."
    )
