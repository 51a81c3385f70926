"""A structure as JSON, for files that must not hold code (``torch.export`` archives).

Classes and functions are written as ``module:qualname`` and found again by importing the module.
"""

from __future__ import annotations

import enum
import importlib
from typing import Any

import torch

from parallax.structure import Structure, decode

__all__ = ["dump", "dump_constant", "load", "load_constant"]

_PLAIN = (int, str, bool, type(None))
_TORCH = {torch.dtype: "dtype", torch.device: "device"}


def dump(structure: Structure) -> Any:
    """JSON-able data that ``load`` turns back into ``structure``.

    Raises:
        TypeError: if a constant has no JSON form; the message names its class and value.
    """
    return dump_constant(structure.encode())


def load(data: Any) -> Structure:
    """The structure that ``dump`` made ``data`` from."""
    return decode(load_constant(data))


def dump_constant(value: Any) -> Any:
    """JSON-able data for one constant."""
    if type(value) in _PLAIN:
        return value
    if type(value) is tuple:
        return [dump_constant(item) for item in value]
    if type(value) is float:
        return {"float": value.hex()}
    if type(value) in _TORCH:
        return {_TORCH[type(value)]: str(value).removeprefix("torch.")}
    if isinstance(value, enum.Enum):
        return {"enum": [_name_of(type(value)), value.name]}
    if hasattr(value, "__qualname__"):
        return {"name": _name_of(value)}
    raise TypeError(
        f"the constant {value!r} of type {type(value).__name__} cannot be written as JSON; "
        f"use numbers, strings, tuples, enums, torch dtypes or importable functions"
    )


def load_constant(data: Any) -> Any:
    """The constant that ``dump_constant`` made ``data`` from."""
    if isinstance(data, list):
        return tuple(load_constant(item) for item in data)
    if not isinstance(data, dict):
        return data
    ((tag, value),) = data.items()
    if tag == "float":
        return float.fromhex(value)
    if tag == "dtype":
        return getattr(torch, value)
    if tag == "device":
        return torch.device(value)
    if tag == "enum":
        return _find(value[0])[value[1]]
    return _find(value)


def _name_of(value: Any) -> str:
    name = f"{value.__module__}:{value.__qualname__}"
    try:
        found = _find(name)
    except (ImportError, AttributeError):
        found = None
    if found is not value:
        raise TypeError(f"{value!r} cannot be written by name: importing {name} does not find it")
    return name


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value
