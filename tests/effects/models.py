"""Small modules that emit, and the same of ``torch.nn``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax import Buffer, Module, Parameter

MOMENTUM = 0.1


class Norm(Module):
    """Batch normalisation of a batch of rows, as ``torch.nn.BatchNorm1d``."""

    weight: Parameter
    running_mean: Buffer
    running_var: Buffer
    count: Buffer
    merge: str | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "eval":
            return (x - self.running_mean) * torch.rsqrt(self.running_var + 1e-5) * self.weight
        var, mean = torch.var_mean(x, 0, correction=0)
        unbiased = var * (x.shape[0] / (x.shape[0] - 1))
        self.emit(
            running_mean=torch.lerp(self.running_mean, mean, MOMENTUM),
            running_var=torch.lerp(self.running_var, unbiased, MOMENTUM),
            merge=self.merge,
        )
        self.emit(count=self.count + 1, merge=None if self.merge is None else "last")
        self.sow(mean=mean)
        return (x - mean) * torch.rsqrt(var + 1e-5) * self.weight


class Stack(Module):
    layers: tuple[Module, ...]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Twice(Module):
    """Uses one normalisation twice, by ``split``."""

    norm: Norm

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.norm.split(2)
        out: Tensor = second(first(x) * 3 + 1)
        return out


def norm(n: int = 3, merge: str | None = None) -> Any:
    return Norm(torch.ones(n), torch.zeros(n), torch.ones(n), torch.tensor(0), merge)


def net(merge: str | None = None) -> Any:
    return Stack((norm(merge=merge), Stack((norm(merge=merge),))))


def reference() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))


def forward(module: Any, x: Tensor) -> Tensor:
    return module(x)  # type: ignore[no-any-return]  # a Tensor


def loss(module: Any, x: Tensor) -> Any:
    return forward(module, x).sin().sum()


def norms(module: Any) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, Norm)]


def assert_stats(module: Any, expected: torch.nn.Sequential) -> None:
    for mine, theirs in zip(norms(module), expected, strict=True):
        torch.testing.assert_close(mine.running_mean, theirs.running_mean)
        torch.testing.assert_close(mine.running_var, theirs.running_var)
        assert torch.equal(mine.count, theirs.num_batches_tracked)  # type: ignore[arg-type]  # a Tensor


def backward(out: Any) -> None:
    """Of the loss of what ``nn`` computed."""
    out.sin().sum().backward()
