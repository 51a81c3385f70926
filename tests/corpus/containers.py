"""Modules that hold modules: as children, in every container, and by recursion."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter
from tests.corpus.leaves import SIZE, Dense


class MLP(Module):
    """Children, and a slot for a module or a function."""

    first: Dense
    second: Dense
    activation: Module | Callable[[Tensor], Tensor]

    def __init__(
        self, activation: Module | Callable[[Tensor], Tensor] = torch.tanh, bias: bool = True
    ) -> None:
        super().__init__()
        self.first = Dense(SIZE, SIZE, bias)
        self.second = Dense(SIZE, SIZE, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.first(x)))


class Sequential(Module):
    """Modules and functions in one tuple, called in turn."""

    layers: tuple[Module | Callable[[Tensor], Tensor], ...]

    def __init__(self, *layers: Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Branches(Module):
    """A dict of modules, in an order that is not the alphabet's."""

    branches: dict[str, Dense]

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.branches = {name: Dense() for name in names}

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches.values()]).sum(0)


class Gates(NamedTuple):
    """A named tuple of a module, a parameter and a constant."""

    inner: Dense
    gain: Parameter
    power: int


class Gated(Module):
    """A named tuple as a child."""

    gates: Gates

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates(Dense(), Parameter((SIZE,), init.ones_), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.gates.gain * self.gates.inner(x) ** self.gates.power


class Nested(Module):
    """Containers in containers, of modules and of parameters."""

    blocks: tuple[dict[str, tuple[Dense, ...]], ...]
    weights: list[list[Parameter]]
    pair: tuple[Dense, Parameter]
    maybe: dict[str, Parameter | None]
    nothing: tuple[Dense, ...]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = ({"a": (Dense(), Dense())}, {"z": (Dense(),), "b": ()})
        self.weights = [[Parameter((SIZE,), init.ones_)], [Parameter((SIZE,), init.ones_)]]
        self.pair = (Dense(bias=False), Parameter((SIZE,), init.ones_))
        self.maybe = {"there": Parameter((SIZE,), init.ones_), "not": None}
        self.nothing = ()

    def forward(self, x: Tensor) -> Tensor:
        for named in self.blocks:
            for block in named.values():
                for layer in block:
                    x = layer(x)
        for row in self.weights:
            for weight in row:
                x = x * weight
        return self.pair[0](x) + self.pair[1]


class Many(Module):
    """A long run of equal children and one of leaves, which generated code loops over."""

    layers: tuple[Dense, ...]
    shifts: tuple[Parameter, ...]

    def __init__(self, n: int = 9) -> None:
        super().__init__()
        self.layers = tuple(Dense() for _ in range(n))
        self.shifts = tuple(Parameter((SIZE,), init.normal_) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = torch.tanh(layer(x)) + shift
        return x


class Twig(Module):
    """A class that names itself: a binary tree."""

    weight: Parameter
    left: Twig | None
    right: Twig | None

    def __init__(self, left: Twig | None = None, right: Twig | None = None) -> None:
        super().__init__()
        self.weight = Parameter((SIZE,), init.normal_)
        self.left = left
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.weight
        if self.left is not None:
            x = self.left(x)
        return x if self.right is None else x + self.right(x)


def chain(depth: int) -> Twig:
    """Modules nested ``depth`` deep."""
    twig = Twig()
    for _ in range(depth - 1):
        twig = Twig(twig)
    return twig
