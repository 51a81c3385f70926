"""Modules of leaves alone: each dtype, an optional one, buffers, scalars, none at all."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import Buffer, Module, Parameter

SIZE = 4


class Dense(Module):
    """The ordinary layer, with an optional bias."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, n_in: int = SIZE, n_out: int = SIZE, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter((n_out, n_in), init.xavier_normal_)
        self.bias = Parameter((n_out,), init.normal_) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Scale(Module):
    """One parameter and a generated ``__init__``."""

    by: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class Norm(Module):
    """Float and integer buffers beside parameters and a constant."""

    weight: Parameter
    bias: Parameter
    running_mean: Buffer
    running_var: Buffer
    num_batches_tracked: Buffer
    eps: float

    def __init__(self, n: int = SIZE, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter((n,), init.ones_)
        self.bias = Parameter((n,), init.zeros_)
        self.running_mean = Buffer((n,), init.normal_)
        self.running_var = Buffer((n,), init.ones_)
        self.num_batches_tracked = Buffer((), dtype=torch.int64)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = (x - self.running_mean) / torch.sqrt(self.running_var + self.eps)
        return normal * self.weight + self.bias


class Precisions(Module):
    """Leaves of every floating and complex kind."""

    half: Parameter
    brain: Parameter
    single: Parameter
    double: Parameter
    spectrum: Parameter
    flags: Buffer
    counts: Buffer

    def __init__(self) -> None:
        super().__init__()
        self.half = Parameter((2,), init.normal_, dtype=torch.float16)
        self.brain = Parameter((2,), init.normal_, dtype=torch.bfloat16)
        self.single = Parameter((2,), init.normal_, dtype=torch.float32)
        self.double = Parameter((2,), init.normal_, dtype=torch.float64)
        self.spectrum = Parameter((2,), torch.randn, dtype=torch.complex64)
        self.flags = Buffer((2,), init.ones_, dtype=torch.bool)
        self.counts = Buffer((2,), init.ones_, dtype=torch.int32)


class Scalars(Module):
    """Leaves of no dimension and of no element."""

    scalar: Parameter
    empty: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.scalar = Parameter((), init.ones_)
        self.empty = Parameter((0, 3), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        return self.scalar * x + self.empty.sum()


class Empty(Module):
    """No field at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def leaf() -> Any:
    """A declared parameter, typed as the tensor that it will be."""
    return Parameter((2,), init.ones_)
