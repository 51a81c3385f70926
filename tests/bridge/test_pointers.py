"""Attributes that point at parts of the model point at the tree's."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import bridge, func, tree


def test_references_within_the_model_lead_to_the_leaves() -> None:
    class Pointing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.layers = [self.linear]
            self.weights = [self.linear.weight]
            self.apply_it = self.linear.forward
            self.__dict__["hidden"] = self.linear

        def forward(self, x: Tensor) -> Tensor:
            assert self.hidden is self.linear and self.weights[0] is self.linear.weight
            return self.layers[0](x) + self.apply_it(x) + self.weights[0].sum()  # type: ignore[no-any-return]  # a tensor

    model = Pointing()
    lifted = bridge.lift(model)
    x = torch.randn(2)
    torch.testing.assert_close(lifted(x), model(x))
    doubled = tree.map(lambda t: t * 2, lifted)
    torch.testing.assert_close(doubled(x), 2 * model(x))
    assert lifted.hidden is lifted.linear and lifted.weights[0] is lifted.linear.weight


class Holder:
    """An object that knows a module, and itself is none."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.bias = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.module(x) + self.bias  # type: ignore[no-any-return]  # a tensor


def closure(self: nn.Module) -> Any:
    return lambda x: self.inner(x)  # type: ignore[operator]  # a module


def default(self: Any) -> Any:
    return lambda x, module=self.inner: module(x)


def inner_closure(self: nn.Module) -> Any:
    inside = closure(self)
    return lambda x: [inside(x)][0]


def tensor_closure(self: nn.Module) -> Any:
    weight = self.inner.weight  # type: ignore[union-attr]  # a module
    return lambda x: x @ weight.t()  # type: ignore[operator]  # a tensor


WAYS: dict[str, Any] = {
    "a closure": closure,
    "a default": default,
    "a closure in a closure": inner_closure,
    "a closure around a tensor": tensor_closure,
    "a partial": lambda self: functools.partial(self.inner.forward),
    "a partial with a tensor": lambda self: functools.partial(torch.matmul, self.inner.weight),
    "an object": lambda self: Holder(self.inner),
    "a method of an object": lambda self: Holder(self.inner).__call__,
    "a method of a tensor": lambda self: self.inner.weight.matmul,
    "a dict in a list": lambda self: [{"it": (self.inner,)}][0]["it"][0],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_around_a_part_of_the_model_finds_the_leaves(way: str) -> None:
    class Pointing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.__dict__["apply_it"] = WAYS[way](self)

        def forward(self, x: Tensor) -> Tensor:
            return vars(self)["apply_it"](x)  # type: ignore[no-any-return]  # a tensor

    model, x = Pointing().requires_grad_(False), torch.randn(2)
    lifted, other = bridge.lift(model), Pointing().requires_grad_(False)
    assert torch.equal(lifted(x), model(x))
    loaded = bridge.load_state_dict(lifted, other.state_dict())
    assert torch.equal(loaded(x), other(x)) and torch.equal(lifted(x), model(x))
    assert torch.equal(bridge.lower(loaded).requires_grad_(False)(x), other(x))
    trained = tree.select(loaded, "parameter").unfreeze()
    grads = func.grad(lambda m: m(x).sum())(trained)
    assert grads.inner.weight.abs().sum() > 0


def test_a_hook_around_a_sibling_finds_the_leaves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).requires_grad_(False)
    first, x = model[0], torch.randn(2)
    model[1].register_forward_hook(lambda module, args, out: out + first(x))
    zeros = tree.map(torch.zeros_like, bridge.lift(model))
    assert torch.equal(zeros(x), torch.zeros(2))
    assert torch.equal(bridge.lift(model)(x), model(x))


def test_what_cannot_be_made_anew_is_refused() -> None:
    class Table(dict[str, Any]):
        pass

    model = nn.Sequential(nn.Linear(2, 2))
    model.table = Table(first=model[0])  # type: ignore[assignment]  # what is tested
    with pytest.raises(TypeError, match=r"the module holds parts of the model in a Table"):
        bridge.lift(model)
    one, two = Holder(model[0]), Holder(model[0])
    one.bias, two.bias = two, one  # type: ignore[assignment]  # as above
    other = nn.Sequential(model[0])
    other.holder = one  # type: ignore[assignment]  # as above
    with pytest.raises(TypeError, match=r"leads to itself and to a part of the model"):
        bridge.lift(other)


def test_each_of_two_models_built_alike_keeps_its_own_objects() -> None:
    class Config:
        def __init__(self) -> None:
            self.factor = 1.0

    class Configured(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = Config()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.config.factor  # type: ignore[no-any-return]  # a tensor

    one, two = Configured().requires_grad_(False), Configured().requires_grad_(False)
    first, second = bridge.lift(one), bridge.lift(two)
    assert first.config is one.config and second.config is two.config
    tree.map(torch.add, first, second)
    assert bridge.lift(two)._spec == second._spec
    one.config.factor = 5.0
    x = torch.randn(2)
    assert torch.equal(first(x), one(x)) and torch.equal(second(x), two(x))
