"""Helpers of ``__as_saved__``, by which ``io`` adapts the state of an optimizer to a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from parallax.core.registry import flatten_module, unflatten_module
from parallax.tree.encoding import load_constant
from parallax.tree.state_names import names_of

__all__ = ["Constants", "Tensors", "below", "constant", "shaped"]

Constants = Mapping[str, Mapping[str, str]]
Tensors = Mapping[str, Tensor]


def below(tensors: Tensors, path: str) -> dict[str, Tensor]:
    """The tensors below a path, by their names from there."""
    start = f"{path}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


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
    leaves, structure = flatten_module(tree)
    made: list[Any] = [None] * len(leaves)
    for name, k in names_of(structure):
        if name in tensors:
            leaf = leaves[k]
            made[k] = torch.empty_like(tensors[name], device=device) if leaf is None else leaf
    return unflatten_module(structure.skeleton, made)
