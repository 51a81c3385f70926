"""A structure as JSON, for files that must not hold code (``torch.export`` archives).

Classes and functions are written as ``module:qualname`` and found again by importing the module.
Of what is read, only the types below and frozen dataclasses are called.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parallax.core.structure import Structure, decode

__all__ = ["dump", "dump_constant", "load", "load_constant"]

_PLAIN = (int, str, bool, type(None))
# Where to look for functions without a usable name: torch.relu, F.gelu, Tensor.relu.
_HOMES = ("torch:", "torch.nn.functional:", "torch._C._nn:", "torch:Tensor.", "builtins:")


def dump(structure: Structure) -> Any:
    """JSON-able data that ``load`` turns back into ``structure``."""
    return dump_constant(structure.encode())


def load(data: Any) -> Structure:
    """The structure that ``dump`` made ``data`` from."""
    return decode(load_constant(data))


def dump_constant(value: Any) -> Any:
    """JSON-able data for one constant: itself, a list for a tuple, or ``{tag: data}``."""
    cls = type(value)
    if cls in _PLAIN:
        return value
    if cls is tuple:
        return [dump_constant(item) for item in value]
    if cls in _DUMPERS:
        tag, data = _DUMPERS[cls]
        return {tag: data(value)}
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return {"namedtuple": [_name_of(cls), [dump_constant(item) for item in value]]}
    if isinstance(value, enum.Enum):
        return {"enum": [_name_of(cls), value.name]}
    if isinstance(value, functools.partial):
        part: Any = value
        keywords = [[key, dump_constant(item)] for key, item in part.keywords.items()]
        return {"partial": [dump_constant(part.func), dump_constant(part.args), keywords]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [
            [f.name, dump_constant(getattr(value, f.name))] for f in dataclasses.fields(value)
        ]
        return {"dataclass": [_name_of(cls), fields]}
    if hasattr(value, "__qualname__"):
        return {"name": _name_of(value)}
    raise TypeError(
        f"the constant {value!r} of type {cls.__name__} cannot be written as JSON; "
        f"use numbers, strings, tuples, enums, frozen dataclasses, torch dtypes or importable "
        f"functions"
    )


def load_constant(data: Any) -> Any:
    """The constant that ``dump_constant`` made ``data`` from."""
    if isinstance(data, list):
        return tuple(load_constant(item) for item in data)
    if not isinstance(data, dict):
        return data
    ((tag, value),) = data.items()
    return _LOADERS[tag](value)


def _load_namedtuple(data: Any) -> Any:
    cls: Any = _find(data[0])
    if not (isinstance(cls, type) and issubclass(cls, tuple) and hasattr(cls, "_make")):
        raise TypeError(f"{data[0]} is no named tuple")
    return cls(*[load_constant(item) for item in data[1]])


def _load_partial(data: Any) -> Any:
    function, arguments, keywords = data
    named = {key: load_constant(item) for key, item in keywords}
    return functools.partial(load_constant(function), *load_constant(arguments), **named)


def _load_dataclass(data: Any) -> Any:
    cls = _find(data[0])
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise TypeError(f"{data[0]} is no dataclass")
    made = object.__new__(cls)
    for name, item in data[1]:
        object.__setattr__(made, name, load_constant(item))
    return made


def _find(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


_TORCH = "torch", lambda value: str(value).removeprefix("torch.")
_DUMPERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    float: ("float", float.hex),
    complex: ("complex", lambda value: [value.real.hex(), value.imag.hex()]),
    bytes: ("bytes", bytes.hex),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    torch.device: ("device", str),
    torch.dtype: _TORCH,
    torch.layout: _TORCH,
    torch.memory_format: _TORCH,
    type(...): ("name", lambda _: "builtins:Ellipsis"),
    torch.Size: ("size", list),
    frozenset: (
        "frozenset",
        lambda value: [dump_constant(item) for item in sorted(value, key=repr)],
    ),
}
_LOADERS: dict[str, Callable[[Any], Any]] = {
    "float": float.fromhex,
    "complex": lambda parts: complex(*map(float.fromhex, parts)),
    "bytes": bytes.fromhex,
    "range": lambda bounds: range(*bounds),
    "device": torch.device,
    "torch": lambda name: getattr(torch, name),
    "size": torch.Size,
    "frozenset": lambda items: frozenset(map(load_constant, items)),
    "namedtuple": _load_namedtuple,
    "enum": lambda data: _find(data[0])[data[1]],
    "partial": _load_partial,
    "dataclass": _load_dataclass,
    "name": _find,
}


def _name_of(value: Any) -> str:
    for name in _names(value):
        try:
            if _find(name) is value:
                return name
        except (ImportError, AttributeError):
            continue
    tried = next(_names(value))
    raise TypeError(f"{value!r} cannot be written by name: importing {tried} does not find it")


def _names(value: Any) -> Iterator[str]:
    yield f"{getattr(value, '__module__', None)}:{value.__qualname__}"
    for home in _HOMES:
        yield f"{home}{value.__name__}"
