"""What type checkers must accept and infer; ``test_typing`` runs them on this file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, assert_type

import torch
from torch import Tensor, nn
from torch.nn import init

from parallax import Buffer, Module, Parameter, effects, field, tree
from parallax import nn as layers

ModuleT = TypeVar("ModuleT", bound=Module)


class Dense(Module):
    """A custom ``__init__`` that declares."""

    weight: Parameter
    bias: Parameter | None
    steps: Buffer
    name: ClassVar[str] = "dense"

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter((n_out, n_in), init.xavier_normal_)
        self.bias = Parameter((n_out,), init.zeros_, dtype=torch.float64) if bias else None
        self.steps = Buffer((), dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class Square4(Dense, init=False):
    """``init=False`` says that the ``__init__`` of the base is inherited."""

    extra: ClassVar[int] = 4


class FromTensors(Module):
    """Leaves may be assigned tensors, and ints and sequences are shapes."""

    weight: Parameter
    counts: Buffer
    more: tuple[Parameter, ...]
    named: dict[str, Parameter]

    def __init__(self, weight: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.weight = weight
        self.counts = torch.zeros(3)
        self.more = (Parameter(3, torch.randn), Parameter([3, 4], init.ones_))
        self.named = {"a": Parameter(shape, init.zeros_)}


class Scale(Module):
    """A generated ``__init__``."""

    by: Parameter
    rate: float = 0.5
    shift: Buffer = field(default=torch.zeros(3))
    sizes: tuple[int, ...] = field(default=(), kw_only=True)
    hidden: int = field(default=3, init=False)
    activation: Module | Callable[[Tensor], Tensor] = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x * self.rate + self.shift


class Child(Scale):
    """Fields of the base first."""

    extra: int = 1


class Residual(Module, Generic[ModuleT]):
    """Generic over its child."""

    inner: ModuleT

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return x + out


class Sized(Protocol):
    """A protocol that modules fulfil."""

    def width(self) -> int: ...


class Layer(Module, ABC):
    """An abstract module."""

    @abstractmethod
    def width(self) -> int: ...


class Square(Layer):
    """A concrete one."""

    weight: Parameter

    def width(self) -> int:
        return self.weight.shape[0]


def leaves_are_tensors(dense: Dense, holder: FromTensors) -> None:
    """A field of a leaf reads as a ``Tensor``."""
    assert_type(dense.weight, Tensor)
    assert_type(dense.steps, Tensor)
    assert_type(dense.weight.shape, torch.Size)
    assert_type(dense.weight @ dense.weight, Tensor)
    shifted: Tensor | None = dense.bias
    if dense.bias is not None:
        total: Tensor = dense.bias + 1
        torch.relu(total)
    first: Tensor = holder.more[0]
    by_name: Tensor = holder.named["a"] * 2
    torch.stack([first, by_name, dense.weight, *holder.more, torch.zeros_like(dense.weight)])
    assert_type(dense.name, str)
    del shifted


def verbs_keep_the_type(dense: Dense) -> None:
    """The verbs of the original return what they are called on."""
    assert_type(dense.initialize(0), Dense)
    assert_type(dense.initialize(torch.Generator(), device="cpu", dtype=torch.float64), Dense)
    assert_type(dense.initialize(torch.random.get_rng_state()), Dense)
    assert_type(dense.reset(0, mode="train"), Dense)
    assert_type(dense.train(1), Dense)
    assert_type(dense.eval(), Dense)
    assert_type(dense.grad(), Dense)
    assert_type(dense.grad().weight, Tensor)
    assert_type(dense.update(lambda p, g: p - 0.1 * g, dense.grad()), Dense)
    assert_type(dense.replace(bias=None), Dense)
    assert_type(dense.split(2), tuple[Dense, ...])
    modules: Iterator[Module] = dense.modules()
    mode: str = dense.mode
    del modules, mode


def constructors_are_seen() -> None:
    """The generated ``__init__`` has the fields for arguments."""
    Dense(3, 4)
    Dense(3, n_out=4, bias=False)
    Square4(4, 4, bias=False)
    Scale(torch.ones(3))
    Scale(Parameter((3,), init.ones_), 0.1, torch.ones(3), sizes=(1, 2))
    Scale(by=torch.ones(3), rate=2, activation=Dense(3, 3))
    Child(torch.ones(3), extra=3)
    assert_type(Residual(Dense(3, 3)), Residual[Dense])
    assert_type(Residual(Dense(3, 3)).inner, Dense)
    wide: Sized = Square(torch.ones(3, 3))
    wide.width()


def trees_keep_their_type(dense: Dense) -> None:
    """So do the functions of ``tree``."""
    assert_type(tree.map(torch.relu, dense), Dense)
    assert_type(tree.update(torch.add, dense, dense), Dense)
    leaves: list[Any] = tree.leaves(dense)
    named: dict[str, Any] = tree.named_leaves(dense)
    del leaves, named


def calls_are_forward(dense: Dense) -> None:
    """A call has the arguments and the result of ``forward``."""
    assert_type(dense.forward(torch.ones(3)), Tensor)
    assert_type(dense(torch.ones(3)), Tensor)
    assert_type(layers.Linear(3, 2)(torch.ones(3)), Tensor)
    out = torch.vmap(dense)(torch.ones(2, 3))
    torch.func.grad(lambda module: module(out).sum())(dense)


def effects_keep_the_types(dense: Dense) -> None:
    """``collect`` returns what the function does, and the module; lambdas are accepted."""
    assert_type(effects.collect(Dense.forward)(dense, torch.ones(3)), tuple[Tensor, Dense])
    effects.collect(lambda module, x: module(x))(dense, torch.ones(3))
