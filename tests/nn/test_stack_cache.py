"""What a compiled stack becomes is taken from torch's cache in another process, where it may be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from parallax import Module, Parameter, func, nn
from tests.compiling import make_compiled

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Scaled(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.weight)


class Allowed(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = times(x)
        return y * self.weight


FACTOR = [2.0]


def times(x: Tensor) -> Tensor:
    """Of which a graph has no more than the name."""
    return x * FACTOR[0]


torch._dynamo.allow_in_graph(times)


def stack_of(cls: Any) -> nn.Stack:
    return nn.Stack.of([cls(torch.full((3,), 0.5 + k)) for k in range(3)])


def begin_again() -> None:
    """As another process does, but for the files that there are."""
    torch.compiler.reset()
    counters.clear()


def test_a_compiled_gradient_is_found_again() -> None:
    stack, x = stack_of(Scaled), torch.tensor([0.1, -0.2, 0.7])

    def loss(weight: Tensor) -> Tensor:
        y = x
        for row in weight:
            y = torch.tanh(y * row)
        return y.square().sum()

    expected = torch.func.grad(loss)(stack.block.weight)
    with fresh_cache():
        for found in (0, 1):
            begin_again()
            gradient = make_compiled(func.grad(lambda s: s(x).square().sum()))
            torch.testing.assert_close(gradient(stack).block.weight, expected)
            assert counters["aot_autograd"]["autograd_cache_hit"] == found
            assert not counters["aot_autograd"]["autograd_cache_bypass"]


def test_a_body_of_which_a_graph_does_not_tell_all_is_compiled_again() -> None:
    stack, x = stack_of(Allowed), torch.ones(3)
    try:
        with fresh_cache():
            for factor in (2.0, 3.0):
                begin_again()
                FACTOR[0] = factor
                y = make_compiled(lambda s, x: s(x))(stack, x)
                torch.testing.assert_close(y, x * factor**3 * (0.5 * 1.5 * 2.5))
                assert not counters["aot_autograd"]["autograd_cache_hit"]
    finally:
        FACTOR[0] = 2.0
