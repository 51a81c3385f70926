"""States as a file has them: which leaves an optimizer's state holds is known only when it is read.

A moment appears when a leaf is first stepped, and a clock when one misses a step. So a fresh state
need not have the structure of the one that was saved. ``io.load`` asks a class for
``__as_saved__(constants, tensors)``: the constants of every node of the file by path, as JSON, and
its tensors by name. It returns a module of the structure that was saved, for the values to go into.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parallax.encoding import load_constant
from parallax.registry import flatten_module, unflatten_module

__all__ = ["Constants", "Tensors", "as_saved", "below", "constant", "shaped"]

Constants = Mapping[str, Mapping[str, str]]
Tensors = Mapping[str, Tensor]


def as_saved(value: Any, constants: Constants, tensors: Tensors) -> Any:
    """``value`` in the structure that was saved, if its class leaves any of it open."""
    change = getattr(type(value), "__as_saved__", None)
    return value if change is None else change(value, constants, tensors)


def below(entries: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The entries at a path and below it, by their paths from there."""
    start = f"{path}."
    found = {name.removeprefix(start): e for name, e in entries.items() if name.startswith(start)}
    return found | ({"": entries[path]} if path in entries else {})


_PLAIN = ("device", "float", "torch")


def constant(constants: Constants, path: str, name: str) -> Any:
    """A constant of a node: numbers, strings, ``None``, dtypes and devices, in tuples.

    Raises:
        TypeError: if it names anything that would have to be imported.
    """
    return _tuples(json.loads(constants[path][name]), name)


def _tuples(data: Any, name: str) -> Any:
    if isinstance(data, list):
        return tuple([_tuples(item, name) for item in data])
    if isinstance(data, dict) and not all(tag in _PLAIN for tag in data):
        raise TypeError(
            f"the {name} of the state that was saved holds {data}, and files may not name code. "
            f"Save such a state by torch.save, and load it with weights_only=False"
        )
    return load_constant(data)


def shaped(tree: Any, tensors: Tensors, device: torch.device) -> Any:
    """A module with leaves where there are tensors of their names, and holes elsewhere."""
    from parallax.bridge.states import names_of  # loaded by whoever reads a file

    leaves, structure = flatten_module(tree)
    made: list[Any] = [None] * len(leaves)
    for name, k in names_of(structure):
        if name in tensors:
            leaf = leaves[k]
            made[k] = torch.empty_like(tensors[name], device=device) if leaf is None else leaf
    return unflatten_module(structure.skeleton, made)
