"""Whether the calls of a module do nothing but compute what they return: told from their code.

What a call may compute with plain tensors is found by calling it once for distributed and once for
plain ones, and what was found then holds for later calls. Both are right only for code that depends
on its arguments and on the tree alone, and writes to nothing else. So the code of a user's
``forward`` is read: the names of globals and of attributes in it must be known here. Code that asks
for anything else is simply run as it is.
"""

from __future__ import annotations

import builtins
import dis
import math
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.core.metaclass import writes_call
from parallax.core.module import Module
from parallax.core.structure import Structure

__all__ = ["Globals", "globals_of"]

Globals = tuple[tuple[Callable[[str], Any], str, Any], ...]
"""What the code read outside of its arguments: from where, under which name, and what it was."""

_WRITES = frozenset({
    "DELETE_ATTR", "DELETE_GLOBAL", "DELETE_SUBSCR", "IMPORT_FROM", "IMPORT_NAME", "STORE_ATTR",
    "STORE_GLOBAL", "STORE_SUBSCR", "YIELD_VALUE",
})  # fmt: skip
_BUILTINS = frozenset({
    "abs", "bool", "dict", "enumerate", "float", "int", "isinstance", "len", "list", "max",
    "min", "range", "reversed", "set", "slice", "sum", "super", "tuple", "zip",
})  # fmt: skip
# Of a tensor: what has a number of it, its memory, its class or its graph, and what writes.
_REFUSED = frozenset({
    "apply_", "backward", "data", "data_ptr", "device_mesh", "element_size", "equal",
    "allclose", "grad", "grad_fn", "is_leaf", "is_nonzero", "item", "map_", "map2_", "name",
    "names", "numpy", "output_nr", "placements", "redistribute", "register_hook",
    "register_post_accumulate_grad_hook", "reinforce", "requires_grad", "requires_grad_",
    "resize", "resize_as", "retain_grad", "retains_grad", "set_", "share_memory_", "storage",
    "storage_type", "to_local", "full_tensor", "tolist", "type", "untyped_storage",
})  # fmt: skip
_OWNERS = (torch, F, math, torch.nn, Tensor)
_CONSTANTS = (int, float, complex, str, bool, type(None), torch.dtype)


def _public(owner: Any) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


_OPERATORS = {name for name in _public(torch) if hasattr(torch.ops.aten, name)}
_DTYPES = {name for name in _public(torch) if isinstance(getattr(torch, name), torch.dtype)}
_ATTRIBUTES = frozenset(
    (_public(Tensor) | _public(F) | _OPERATORS | _DTYPES | _public(math))
    | {"append", "extend", "finfo", "functional", "items", "keys", "mode", "nn", "values"}
) - _REFUSED  # fmt: skip


def globals_of(structure: Structure) -> Globals | None:
    """What the calls of a module read outside of their arguments; ``None`` if they may do more.

    Args:
        structure: of the module.
    """
    reader = _Reader(structure)
    for cls in reader.classes:
        if any(map(writes_call, cls.__mro__)) or not reader.attribute("forward", [cls]):
            return None
    if not all([reader.value(one) for node in structure.nodes() for one in node.local.constants]):
        return None
    return tuple(reader.read)


def _is_trusted(function: Any) -> bool:
    """Whether a function is one of ours or of torch's that only computes."""
    room = getattr(function, "__module__", None) or ""
    return room.startswith(("parallax.nn.", "parallax.core.", "torch.nn.functional", "torch._jit_"))


class _Reader:
    """Reads code, each function once, and keeps what it refers to."""

    def __init__(self, structure: Structure) -> None:
        classes = [node.cls for node in structure.nodes()]
        self.classes: list[Any] = [cls for cls in dict.fromkeys(classes) if issubclass(cls, Module)]
        self.read: list[tuple[Callable[[str], Any], str, Any]] = []
        self._seen: set[Any] = set()

    def attribute(self, name: str, classes: list[Any]) -> bool:
        """Whether what classes have under a name only computes."""
        for cls in classes:
            for base in cls.__mro__:
                if base is Module:
                    break
                found = vars(base).get(name)
                if isinstance(found, (staticmethod, classmethod)):
                    found = found.__func__
                if isinstance(found, property):
                    found = found.fget
                if isinstance(found, types.MemberDescriptorType) or name in cls.__layout__.fields:
                    continue  # a field
                if found is None:
                    continue
                self.read.append((vars(base).get, name, vars(base)[name]))
                if not self.value(found):
                    return False
        return True

    def value(self, value: Any) -> bool:
        """Whether a value is a constant, or a function that only computes."""
        if isinstance(value, _CONSTANTS) or any([value is one for one in (*_OWNERS, _layers())]):
            return True
        if type(value) in (tuple, frozenset):
            return all(map(self.value, value))
        if isinstance(value, type):
            return issubclass(value, (BaseException, Module, torch.nn.Module)) and _is_known(value)
        name = getattr(value, "__name__", "")
        if isinstance(value, types.BuiltinFunctionType):
            of_all = isinstance(value.__self__, (types.ModuleType, type))  # not of an object
            return of_all and name in _ATTRIBUTES and not name.endswith("_")
        if _is_trusted(value) and (isinstance(value, types.FunctionType)):
            return True
        return isinstance(value, types.FunctionType) and self._function(value)

    def _function(self, function: types.FunctionType) -> bool:
        if function in self._seen:
            return True
        self._seen.add(function)
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        return all(map(self.value, defaults)) and self._code(function, function.__code__)

    def _code(self, function: types.FunctionType, code: types.CodeType) -> bool:
        for step in dis.get_instructions(code):
            if step.opname in _WRITES and not code.co_name.startswith("<"):
                return False
            name = step.argval
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not self._global(function, name):
                return False
            if step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") and not self._cell(function, name):
                return False
            if step.opname in _LOADS and not self._attribute(name):
                return False
        inner = [one for one in code.co_consts if isinstance(one, types.CodeType)]
        return all([self._code(function, one) for one in inner])

    def _attribute(self, name: str) -> bool:
        owners = [cls for cls in self.classes if _has(cls, name)]
        fields = any([name in cls.__layout__.fields for cls in self.classes])
        known = (name in _ATTRIBUTES or name in _public(_layers())) and not name.endswith("_")
        return (known or fields or bool(owners)) and self.attribute(name, owners)

    def _global(self, function: types.FunctionType, name: str) -> bool:
        names = function.__globals__
        if name not in names:
            found = getattr(builtins, name, None)
            if isinstance(found, type) and issubclass(found, BaseException):
                return True
            return name in _BUILTINS
        self.read.append((names.get, name, names[name]))
        return self.value(names[name])

    def _cell(self, function: types.FunctionType, name: str) -> bool:
        free = function.__code__.co_freevars
        if name not in free:
            return True  # of the function around it, which is read as well
        cell = (function.__closure__ or ())[free.index(name)]
        try:
            held = cell.cell_contents
        except ValueError:  # not yet set
            return False
        self.read.append((lambda _, cell=cell: cell.cell_contents, name, held))  # type: ignore[misc]  # of this very cell
        return self.value(held) if name != "__class__" else True


def _layers() -> Any:
    """``parallax.nn``, of which the classes are known here; it is above this room."""
    return sys.modules.get("parallax.nn", torch.nn)


def _has(cls: Any, name: str) -> bool:
    """Whether a class has a name that is not of every module; those write, or ask for numbers."""
    above = cls.__mro__[: cls.__mro__.index(Module)]
    return any([name in vars(base) for base in above])


_LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


def _is_known(cls: type) -> bool:
    """Whether calling a class, or asking for an instance of it, does nothing else."""
    return issubclass(cls, BaseException) or cls.__module__.startswith("parallax.nn.")
