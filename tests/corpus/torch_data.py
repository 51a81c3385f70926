"""Torch's databases of modules and optimizers and their inputs, from its wheel."""

from __future__ import annotations

import importlib
import sys
import types
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

__all__ = ["Sample", "modules", "operators", "optimizers", "samples", "seeded"]


def modules() -> list[Any]:
    """What torch knows of each of its module classes."""
    return list(_testing("common_modules").module_db)


def optimizers() -> list[Any]:
    """What torch knows of each of its optimizers."""
    return list(_testing("common_optimizers").optim_db)


def operators() -> list[Any]:
    """What torch knows of each of its operators."""
    return list(_testing("common_methods_invocations").op_db)


def _testing(name: str) -> Any:
    # Torch's test helpers want expecttest for a base class that nothing here uses.
    missing = "expecttest" not in sys.modules
    if missing:
        stand_in: Any = types.ModuleType("expecttest")
        stand_in.TestCase = unittest.TestCase
        sys.modules["expecttest"] = stand_in
    try:
        return importlib.import_module(f"torch.testing._internal.{name}")
    finally:
        if missing:
            del sys.modules["expecttest"]


class Sample:
    """One construction and one input of a class, in double precision.

    Attributes:
        cls: the class of ``torch.nn``.
        args, kwargs: of its constructor.
        inputs: the floating tensors among the arguments of the call; of a loss the first alone,
            for it may have no derivative by the target.
        training: whether it is in training mode.
    """

    def __init__(self, info: Any, given: Any, training: bool) -> None:
        self.cls = info.module_cls
        self.args, self.kwargs = given.constructor_input.args, given.constructor_input.kwargs
        self.training = training
        call = given.forward_input.args, given.forward_input.kwargs
        self._leaves, self._spec = torch_pytree.tree_flatten(call)
        floating = [k for k, x in enumerate(self._leaves) if _is_floating(x)]
        self._places = floating[:1] if info.name.endswith("Loss") else floating
        self.inputs: tuple[Tensor, ...] = tuple([self._leaves[k] for k in self._places])

    def make(self) -> nn.Module:
        """Torch's module; a lazy one has seen its input."""
        module: nn.Module = self.cls(*self.args, **self.kwargs).to(torch.float64)
        module.train(self.training)
        if self.cls.__name__.startswith("Lazy"):
            self.call(module)
        return module

    def call(self, module: Any, inputs: tuple[Tensor, ...] | None = None) -> Any:
        """A call of a module, with other floating tensors where some are given."""
        leaves = [x.clone() if isinstance(x, Tensor) else x for x in self._leaves]
        for place, value in zip(self._places, inputs or (), strict=inputs is not None):
            leaves[place] = value
        args, kwargs = torch_pytree.tree_unflatten(leaves, self._spec)
        return module(*args, **kwargs)


def samples(info: Any, count: int | None) -> Iterator[Sample]:
    """So many samples of a class in each mode; all for ``None``."""
    for training in (True, False):
        torch.manual_seed(0)
        given = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
        )
        for one in [g for g in given if g.forward_input is not None][:count]:
            yield Sample(info, one, training)


def seeded(function: Callable[[], Any]) -> Any:
    """What a function gives with torch's generator at one state."""
    torch.manual_seed(1)
    return function()


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
