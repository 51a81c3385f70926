"""What the tests of ``torch.compile`` compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as torch_pytree

from parallax import tree
from tests.corpus import FLOAT, example_input

INPUT = example_input()
CALLABLE = [case for case in FLOAT if case.name not in ("chain", "empty")]


def loss_of(module: Any, x: Tensor) -> Tensor:
    return torch.cos(module(x)).sum()


def step(module: Any, x: Tensor) -> Any:
    grads = torch.func.grad(loss_of)(module, x)
    return tree.map(lambda p, g: p - 0.1 * g, module, grads)


def raw_step(module: Any, x: Tensor) -> Any:
    grads = torch.func.grad(loss_of)(module, x)
    return torch_pytree.tree_map(lambda p, g: p - 0.1 * g, module, grads)
