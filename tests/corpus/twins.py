"""The same networks in ``torch.nn``, under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.corpus.leaves import SIZE


class TorchMLP(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(SIZE, SIZE, bias)
        self.second = nn.Linear(SIZE, SIZE, bias)

    def forward(self, x: Tensor) -> Any:
        return self.second(torch.tanh(self.first(x)))


class TorchSequential(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(), nn.Linear(SIZE, SIZE))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


class TorchBranches(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({name: nn.Linear(SIZE, SIZE) for name in names})

    def forward(self, x: Tensor) -> Any:
        return torch.stack([branch(x) for branch in self.branches.values()]).sum(0)


class TorchMany(nn.Module):
    def __init__(self, n: int = 9) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(SIZE, SIZE) for _ in range(n)])
        self.shifts = nn.ParameterList([torch.zeros(SIZE) for _ in range(n)])

    def forward(self, x: Tensor) -> Any:
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = torch.tanh(layer(x)) + shift
        return x


class TorchTiedParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(SIZE, SIZE)
        self.decoder = nn.Linear(SIZE, SIZE)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Any:
        return self.decoder(torch.tanh(self.encoder(x)))


class TorchTiedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(SIZE, SIZE)
        self.other = self.one
        self.several = nn.ModuleList([self.one, nn.Linear(SIZE, SIZE)])
        self.apart = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Any:
        for layer in (self.one, self.other, *self.several, self.apart):
            x = torch.tanh(layer(x))
        return x
