"""Quick calls are not seen: whatever a forward does to its modules, it is as in the original."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as torch_pytree

from parallax import bridge

Forward = Callable[["Model", Tensor], Any]
forwards: dict[str, Forward] = {}


class Model(nn.Module):
    """Runs a function as its forward."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.drop = nn.Dropout(0.5)
        self.gain = nn.Parameter(torch.randn(3))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def forward(function: Forward) -> Forward:
    forwards[function.__name__] = function
    return function


@forward
def swaps_weights(self: Model, x: Tensor) -> Any:
    other = {"weight": torch.eye(3), "bias": torch.ones(3)}
    return torch.func.functional_call(self.inner, other, (x,)), self.inner(x)


@forward
def reads_tables(self: Model, x: Tensor) -> Any:
    inner = self.inner._parameters
    assert list(inner) == ["weight", "bias"] and len(inner) == 2 and "bias" in inner
    assert dict(self._parameters) == {"gain": self.gain} == {**self._parameters}
    assert inner.copy()["weight"] is self.inner.weight is inner["weight"] is inner.get("weight")
    assert [name for name, _ in inner.items()] == ["weight", "bias"]
    assert list(self.children()) == [self.inner, self.norm, self.drop]
    assert repr(inner) == repr(dict(inner)) and inner == dict(inner)
    return [p.sum() for p in self.parameters()], len(self.state_dict())


@forward
def writes_tables(self: Model, x: Tensor) -> Any:
    self.inner._parameters["weight"] = nn.Parameter(torch.eye(3))
    y = self.inner(x)
    self.inner._parameters.update(bias=None)
    return y, self.inner(x), self.inner._parameters.pop("weight")


@forward
def replaces_parameters(self: Model, x: Tensor) -> Any:
    gain = self.gain
    del self.gain
    self.gain = gain * 2  # type: ignore[assignment]  # a plain tensor now
    self.inner.bias = None  # type: ignore[assignment]  # a hole
    self.norm.weight = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
    return self.gain * x, self.inner(x), self.norm(x)


@forward
def replaces_a_child(self: Model, x: Tensor) -> Any:
    before = self.inner(x)
    self.inner = nn.Identity()  # type: ignore[assignment]  # any module
    self.add_module("more", nn.Flatten(0))
    return before, self.inner(x), self.more(x)  # type: ignore[operator]  # a module


@forward
def replaces_a_forward(self: Model, x: Tensor) -> Any:
    # as libraries do that record what layers return
    original, seen = self.inner.forward, []

    def recording(x: Tensor) -> Tensor:
        seen.append(original(x))
        return seen[-1] + 1

    self.inner.forward = recording  # type: ignore[method-assign, assignment]  # that is the point
    y = self.inner(x)
    self.inner.forward = original  # type: ignore[method-assign]  # as above
    self.norm.forward = lambda x: x  # type: ignore[method-assign, assignment]  # and it stays
    return y, seen, self.inner(x), self.norm(x)


@forward
def registers_hooks(self: Model, x: Tensor) -> Any:
    def plus_one(module: nn.Module, args: Any, out: Any) -> Any:
        return out + 1

    first = self.inner.register_forward_hook(plus_one)
    self.norm.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    y = self.inner(x), self.norm(x)
    first.remove()
    return *y, self.inner(x)


@forward
def writes_attributes(self: Model, x: Tensor) -> Any:
    self.drop.p = 0.0
    self.norm.eps = 1.0
    self.drop.train()
    self.last = x
    return self.drop(x), self.norm(x), self.last


@forward
def copies(self: Model, x: Tensor) -> Any:
    twin = copy.deepcopy(self.inner)
    twin._parameters["weight"] = nn.Parameter(torch.eye(3))
    with torch.no_grad():
        twin.bias.zero_()
    again = pickle.loads(pickle.dumps(self.inner))
    again.bias = None
    return twin(x), again(x), self.inner(x)


@forward
def looks_for_what_is_not_there(self: Model, x: Tensor) -> Any:
    with pytest.raises(AttributeError, match="no attribute 'weigth'"):
        _ = self.inner.weigth
    return hasattr(self, "gain"), hasattr(self.inner, "gain"), getattr(self, "other", None)


@pytest.mark.parametrize("name", forwards)
def test_a_forward_is_what_it_was_and_forgotten(name: str) -> None:
    torch.manual_seed(0)
    model = Model(forwards[name]).requires_grad_(False).eval()
    lifted = bridge.lift(model)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    x = torch.randn(3)
    plain = model.inner(x), model.norm(x), model.drop(x)
    expected = torch_pytree.tree_leaves(copy.deepcopy(model)(x))
    for _ in range(3):
        found = torch_pytree.tree_leaves(lifted(x))
        assert len(found) == len(expected)
        for mine, theirs in zip(found, expected, strict=True):
            same = torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs
            assert same, (mine, theirs)
        for mine, theirs in zip((lifted.inner, lifted.norm, lifted.drop), plain, strict=True):
            assert torch.equal(mine(x), theirs)
    for n, p in model.state_dict().items():
        assert torch.equal(p, before[n])


def test_a_class_that_looks_attributes_up_in_its_own_way() -> None:
    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            return found * 2 if isinstance(found, Tensor) else found

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    x = torch.randn(2)
    assert torch.equal(bridge.lift(Doubling())(x), 2 * x)


def test_an_attribute_of_the_class_comes_before_a_parameter() -> None:
    class Shadowed(nn.Module):
        scale = 3.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = Shadowed()
    model._parameters["scale"] = nn.Parameter(torch.ones(()))
    x = torch.randn(2)
    assert torch.equal(bridge.lift(model)(x), model(x)) and torch.equal(model(x), 3 * x)


def test_a_forward_that_is_replaced_on_the_class() -> None:
    class Own(nn.Linear):
        pass

    lifted, x = bridge.lift(nn.Sequential(Own(3, 3))), torch.randn(3)
    lifted(x)
    Own.forward = lambda self, x: x + 1  # type: ignore[method-assign, assignment]  # that is the point
    assert torch.equal(lifted(x), x + 1)


def test_global_hooks_are_called() -> None:
    lifted, x = bridge.lift(nn.Sequential(nn.Linear(3, 3))), torch.randn(3)
    lifted(x)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(type(module).__name__)
    )
    lifted(x)
    handle.remove()
    lifted(x)
    assert seen == ["Linear", "Sequential"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_call_is_traced_by_torch_jit() -> None:
    lifted, x = bridge.lift(nn.Sequential(nn.Linear(3, 3), nn.ReLU())), torch.randn(3)
    expected = lifted(x)
    traced: Any = torch.jit.trace(lambda x: lifted(x), (x,))
    assert torch.equal(traced(x), expected) and torch.equal(lifted(x), expected)
