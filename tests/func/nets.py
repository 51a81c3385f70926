"""A small network in double precision, its input, and its loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter


class Net(Module):
    weight: Parameter
    bias: Parameter | None
    scale: Buffer
    steps: Buffer

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight * self.scale
        return y if self.bias is None else y + self.bias


class Twice(Module):
    first: Net
    second: Net

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(x))))


def net(seed: int = 0, bias: bool = True) -> Net:
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Any:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    return Net(draw(3, 3), draw(3) if bias else None, draw(), torch.tensor(seed))


X = torch.tensor([[0.5, -1.0, 0.25], [1.0, 0.0, -0.5]], dtype=torch.float64)


def loss(model: Any, x: Tensor = X) -> Tensor:
    out: Tensor = model(x)
    return (out**2).mean()
