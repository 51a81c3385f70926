"""Modules with other bases: generic, abstract, of a protocol, with a mixin, of a module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter
from tests.corpus.leaves import SIZE, Dense

InnerT = TypeVar("InnerT", bound=Module)


class Residual(Module, Generic[InnerT]):
    """A generic module: the TypeVar goes by its bound."""

    inner: InnerT

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]  # a call of a module is Any


class Sized(Protocol):
    """A protocol that modules may list as a base."""

    n: int

    def width(self) -> int: ...


class Layer(Module, ABC):
    """An abstract module."""

    n: int

    @abstractmethod
    def width(self) -> int: ...


class Named:
    """A plain mixin with state of the class and a method."""

    prefix = "layer"

    def label(self) -> str:
        return f"{self.prefix} {type(self).__name__}"


class Square(Named, Layer, Sized):
    """A module with an ABC, a protocol and a plain class for bases."""

    weight: Parameter

    def __init__(self, n: int = SIZE) -> None:
        super().__init__(n)
        self.weight = Parameter((n, n), init.eye_)

    def width(self) -> int:
        return self.n

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class ScaledDense(Dense):
    """A child class that adds a field and calls the parent's ``__init__``."""

    scale: Parameter

    def __init__(self, n_in: int = SIZE, n_out: int = SIZE) -> None:
        super().__init__(n_in, n_out)
        self.scale = Parameter((n_out,), init.ones_)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale
