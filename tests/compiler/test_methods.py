"""Methods of objects that a trace makes: what they hold is read and guarded as everywhere else."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import parallax
from parallax import Module, Parameter, func
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

HELD = [2.0]


def ours(fn: Callable[..., Any]) -> Callable[..., Any]:
    return make_compiled(fn, backend="eager", recompile_limit=64)


def torchs(fn: Callable[..., Any]) -> Callable[..., Any]:
    made: Any = torch.compile  # recompile_limit is in no overload of 2.13
    compiled: Callable[..., Any] = made(fn, backend="eager", fullgraph=True, recompile_limit=64)
    return compiled


def output(net: Any, x: Tensor) -> Any:
    return net(x)


def gradient(net: Any, x: Tensor) -> Any:
    return func.grad(lambda net: net(x).sum())(net).weight


COMPILERS = pytest.mark.parametrize("compiler", [ours, torchs])
FUNCTIONS = pytest.mark.parametrize("fn", [output, gradient])


class Linear(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


@COMPILERS
@FUNCTIONS
def test_what_methods_close_over(compiler: Any, fn: Any) -> None:
    config, held, tensor = SimpleNamespace(by=2.0), [2.0], torch.full((2,), 3.0)
    inner, local, table = Linear(torch.ones(2)), threading.local(), {"by": {"deep": [2.0]}}
    local.by = 2.0

    class Net(Module):
        weight: Parameter

        @property
        def by(self) -> Any:
            return config.by

        @classmethod
        def of_class(cls) -> Any:
            return held[0]

        @staticmethod
        def of_none(x: Tensor) -> Any:
            return x * table["by"]["deep"][0]

        def __getitem__(self, index: int) -> Any:
            return self.weight * local.by

        def forward(self, x: Tensor) -> Any:
            y = self.of_none(inner(self.weight * x * self.by)) * self.of_class()
            return y * tensor * self[0] * HELD[0]

    net, x = Net(torch.tensor([1.0, 2.0])), torch.ones(2)
    compiled = compiler(fn)

    def agree() -> Tensor:
        expected = fn(net, x)
        torch.testing.assert_close(compiled(net, x), expected)
        assert isinstance(expected, Tensor)
        return expected

    before = agree()
    for change in (
        lambda: setattr(config, "by", 3.0),
        lambda: held.insert(0, 5.0),
        lambda: tensor.mul_(2),
        lambda: setattr(local, "by", 7.0),
        lambda: table["by"]["deep"].insert(0, 4.0),
        lambda: table.update(by={"deep": [9.0]}),
    ):
        change()
        now = agree()
        assert not torch.equal(now, before)
        before = now
    tensor, inner = torch.full((2,), 11.0), Linear(torch.full((2,), 13.0))
    agree()


@COMPILERS
def test_methods_that_are_exchanged(compiler: Any) -> None:
    class First(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    class Base(First):
        def scale(self, x: Tensor) -> Tensor:
            return x * 2

        @classmethod
        def of_class(cls, x: Tensor) -> Tensor:
            return x * 3

        @staticmethod
        def of_none(x: Tensor) -> Tensor:
            return x * 5

        @property
        def by(self) -> float:
            return 7.0

    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(self.scale(x))
            return self.of_none(self.of_class(y)) * self.by

    kept = Base.scale
    compiled, net, x = compiler(gradient), Net(torch.ones(2)), torch.ones(2)
    before = compiled(net, x)
    cls: Any = Net
    changes: list[Callable[[], None]] = [
        lambda: setattr(Base, "scale", lambda self, x: x * 11),
        lambda: setattr(Base, "of_class", classmethod(lambda cls, x: x * 13)),
        lambda: setattr(Base, "of_none", staticmethod(lambda x: x * 17)),
        lambda: setattr(Base, "by", property(lambda self: 19.0)),
        lambda: setattr(cls, "scale", lambda self, x: x * 23),  # in front of the other
        lambda: setattr(First, "forward", lambda self, x: self.weight * x * 29),
        lambda: delattr(cls, "scale"),
        lambda: setattr(Base, "scale", functools.wraps(kept)(lambda self, x: kept(self, x) * 31)),
        lambda: setattr(cls, "forward", lambda self, x: self.weight * x * 37),
    ]
    for change in changes:
        change()
        expected, got = gradient(net, x), compiled(net, x)
        assert not torch.equal(expected, before)
        assert torch.equal(got, expected)
        before = expected


def test_a_compiled_method_of_a_class_that_is_made_in_a_function() -> None:
    config, shift = SimpleNamespace(by=2.0), torch.ones(2)

    class Net(Linear):
        @parallax.compile(backend="eager")
        def loss(self, x: Tensor) -> Any:
            return (self(x) * config.by + shift).sum()

    net, x = Net(torch.ones(2)), torch.ones(2)
    assert net.loss(x).item() == 6.0
    config.by = 5.0
    assert net.loss(x).item() == 12.0
    shift = torch.full((2,), 3.0)
    assert net.loss(x).item() == 16.0
    assert make_compiled(net, backend="eager")(x).tolist() == [1.0, 1.0]


@FUNCTIONS
@pytest.mark.parametrize("first", [0, 1])
def test_a_tensor_that_a_method_closes_over_may_be_a_leaf_too(fn: Any, first: int) -> None:
    tensor = torch.full((2,), 2.0)

    class Net(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * tensor + self.weight * tensor

    nets = [Net(tensor), Net(torch.full((2,), 3.0))]
    compiled, x = ours(fn), torch.ones(2)
    for net in (nets[first], nets[1 - first], nets[first]):
        torch.testing.assert_close(compiled(net, x), fn(net, x))
    tensor = torch.full((2,), 5.0)
    for net in (*nets, Net(tensor)):
        torch.testing.assert_close(compiled(net, x), fn(net, x))


@COMPILERS
def test_methods_of_other_objects_that_are_made_in_a_trace(compiler: Any) -> None:
    held, tensor = [2.0], torch.full((2,), 3.0)

    class Runs:
        def __init__(self, net: Any) -> None:
            self.net = net

        def run(self, x: Tensor) -> Any:
            return self.net(x) * held[0] * tensor

        def __call__(self, x: Tensor) -> Any:
            return self.run(x) + tensor

    @dataclasses.dataclass
    class Data(Runs):
        net: Any

        def run(self, x: Tensor) -> Any:
            return super().run(x) * held[0]

    def fn(net: Any, x: Tensor) -> Any:
        return Runs(net)(x) + Data(net)(x)

    net, x = Linear(torch.ones(2)), torch.ones(2)
    compiled = compiler(fn)
    torch.testing.assert_close(compiled(net, x), fn(net, x))
    held[0] = 5.0
    torch.testing.assert_close(compiled(net, x), fn(net, x))
    tensor = torch.full((2,), 7.0)
    torch.testing.assert_close(compiled(net, x), fn(net, x))
    Runs.run = lambda self, x: 11 * x  # type: ignore[method-assign]  # the change in question
    torch.testing.assert_close(compiled(net, x), fn(net, x))


def test_arrays_of_numpy_that_are_no_arguments() -> None:
    array = np.array([1.0, 2.0])

    class Net(Module):
        weight: Parameter
        config: Any

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * torch.from_numpy(array) * float(self.config.array[0])

    holder: Any = type("Config", (), {})()
    holder.array = np.array([3.0])
    net, x = Net(torch.ones(2, dtype=torch.float64), holder), torch.ones(2, dtype=torch.float64)
    compiled = make_compiled(output, backend="eager")
    assert compiled(net, x).tolist() == [3.0, 6.0]
    array[0], holder.array[0] = 7.0, 5.0
    assert compiled(net, x).tolist() == [35.0, 10.0]
    holder.array = np.array([2.0])
    assert compiled(net, x).tolist() == [14.0, 4.0]
