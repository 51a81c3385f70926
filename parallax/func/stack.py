"""``stack_module_state``: the tensors of several modules, stacked, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parallax import tree
from parallax.core.nodes import is_module
from parallax.func.arguments import short
from parallax.tree.places import Survey

__all__ = ["stack_module_state"]

State = tuple[dict[str, Tensor], dict[str, Tensor]]
_SETTINGS = (bool, int, float, complex, str, bytes, tuple, torch.dtype, torch.device, type(None))


def stack_module_state(models: Sequence[Any]) -> State:
    """Stacks the tensors of several modules, as ``torch.func.stack_module_state``.

    The modules must be alike in all but their tensors: class, constants, activations, mode. For
    Parallax modules ``tree.stack`` gives a module instead of two dicts.

    Args:
        models: Parallax modules, or ``nn.Module`` s.

    Returns:
        Parameters and buffers by dotted name, each with a leading dimension; for use with
        ``functional_call`` under ``vmap``.

    Raises:
        TypeError: if they are neither, or no model is given.
        ValueError: if two of them differ in anything but their tensors; the message names where.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> parameters, _ = func.stack_module_state([torch.nn.Linear(2, 3) for _ in range(4)])
        >>> parameters["weight"].shape
        torch.Size([4, 3, 2])
    """
    if not isinstance(models, (list, tuple)):
        raise TypeError(
            f"stack_module_state: models must be a list of modules, got {short(models)}. "
            f"Give a list of at least one: [model]"
        )
    members = list(models)
    if not members:
        raise TypeError("stack_module_state: models is empty. Give at least one: [model]")
    if all(is_module(member) for member in members):
        return _by_role(tree.stack(members))
    if not all(isinstance(member, nn.Module) for member in members):
        kinds = sorted({type(member).__name__ for member in members})
        raise TypeError(
            f"stack_module_state: models must be modules of one kind, got {kinds}. "
            f"Give parallax.Modules only, or nn.Modules only"
        )
    for number, member in enumerate(members[1:], 1):
        for where, ours, theirs in _differences(members[0], member):
            raise ValueError(
                f"stack_module_state: model {number} differs from model 0 at {where}: {theirs} "
                f"instead of {ours}. The stack would run all of them as model 0"
            )
    return torch.func.stack_module_state(members)


def _by_role(stacked: Any) -> State:
    survey = Survey(stacked)
    first = survey.chart.first
    named = {entry.path: leaf for entry, leaf in zip(first, survey.leaves, strict=True)
             if leaf is not None}  # fmt: skip
    roles = {entry.path: entry.role for entry in first}
    parameters = {path: leaf for path, leaf in named.items() if roles[path] == "parameter"}
    return parameters, {path: leaf for path, leaf in named.items() if path not in parameters}


def _differences(one: nn.Module, two: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Where two modules differ in anything but the values of their tensors."""
    ours, theirs = dict(one.named_modules()), dict(two.named_modules())
    for path in (*ours, *(path for path in theirs if path not in ours)):
        where = path or "the root"
        a, b = ours.get(path), theirs.get(path)
        if type(a) is not type(b) or a is None or b is None:
            yield where, type(a).__name__, type(b).__name__
            return
        mine, other = dict(_settings(a)), dict(_settings(b))
        for name in (*mine, *(name for name in other if name not in mine)):
            left, right = mine.get(name, "nothing"), other.get(name, "nothing")
            if type(left) is not type(right) or left != right:
                yield (f"{path}.{name}" if path else name), repr(left), repr(right)


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module's forward may depend on besides tensors and submodules."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        if isinstance(value, _SETTINGS) or (callable(value) and not isinstance(value, nn.Module)):
            yield name, value
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        yield name, None if tensor is None else (tuple(tensor.shape), tensor.dtype)
