"""Modules made of modules and functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from parallax import Module, bridge, func, nn, random, tree
from tests.nn.parity import assert_parity, assert_same, assert_same_start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_sequential_is_torchs(dtype: torch.dtype) -> None:
    ours = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 2, False, dtype=dtype))
    theirs = torch_nn.Sequential(
        torch_nn.Linear(3, 4, dtype=dtype), torch_nn.Linear(4, 2, False, dtype=dtype)
    )
    assert_parity(ours, theirs, torch.randn(5, 3, dtype=dtype))


def test_nested_sequentials_have_torchs_names_and_repr() -> None:
    ours = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 1))
    theirs = torch_nn.Sequential(
        torch_nn.Sequential(torch_nn.Linear(3, 3), torch_nn.Linear(3, 3)), torch_nn.Linear(3, 1)
    )
    layer = assert_parity(ours, theirs, torch.randn(2, 3))
    assert list(bridge.state_dict(layer)) == list(theirs.state_dict())


def test_sequential_takes_functions_and_is_a_sequence() -> None:
    net = nn.Sequential(nn.Linear(3, 4), torch.tanh, nn.Linear(4, 2)).initialize(0)
    x = torch.randn(5, 3)
    first, _, last = net
    assert_same(net(x), last(torch.tanh(first(x))))
    assert len(net) == 3 and net[1] is torch.tanh and net[-1] is last
    assert isinstance(net[:2], nn.Sequential)
    assert_same(net[:2](x), torch.tanh(first(x)))
    assert nn.Sequential()(x) is x
    assert "(1): tanh" in repr(net)


def test_dropout_in_a_sequential_differs_by_place() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Dropout()).train(random.key(0))
    x = torch.ones(100)
    assert not torch.equal(net[0](x), net[1](x))


@pytest.mark.parametrize("wrong", [3, None, torch_nn.ReLU(), nn.Linear], ids=repr)
def test_what_cannot_be_a_layer_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"Sequential: layer 1 is .* a function"):
        nn.Sequential(torch.relu, wrong)
    with pytest.raises(TypeError, match="Residual: inner is"):
        nn.Residual(wrong)
    with pytest.raises(TypeError, match="MLP: activation is"):
        nn.MLP((2, 2), wrong)


def test_errors_inside_name_the_path() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)).initialize(0)
    with pytest.raises(ValueError, match=r"^Sequential.layers.1 \(Linear\): expected .* \(\*, 5\)"):
        net(torch.ones(2, 3))


def test_lambda_is_its_function() -> None:
    assert_same(nn.Lambda(torch.relu)(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))
    assert repr(nn.Lambda(F.gelu)) == "Lambda(gelu)"
    wrong: Any
    for wrong in (3, nn.Linear(1, 1), torch_nn.ReLU()):
        with pytest.raises(TypeError, match=r"Lambda\(function=\): expected a function"):
            nn.Lambda(wrong)


def test_residual_adds_its_input_and_its_gradient() -> None:
    inner = nn.Linear(3, 3).initialize(0)
    layer = nn.Residual(inner)
    x = torch.randn(4, 3)
    assert_same(layer(x), x + F.linear(x, inner.weight, inner.bias))
    grads = func.grad(lambda m, x: m(x).square().sum())(layer, x)
    expected = func.grad(lambda m, x: (x + m(x)).square().sum())(inner, x)
    assert_same(grads.inner.weight, expected.weight)


def test_residual_refuses_another_shape() -> None:
    class Net(Module):
        block: nn.Residual

        def forward(self, x: Tensor) -> Any:
            return self.block(x)

    net = Net(nn.Residual(nn.Linear(3, 1))).initialize(0)
    with pytest.raises(ValueError, match=r"Net.block \(Residual\): .*\(2, 3\) to \(2, 1\)"):
        net(torch.ones(2, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_mlp_is_affine_maps_with_activations_between(bias: bool) -> None:
    ours = nn.MLP((3, 5, 4, 2), torch.tanh, bias)
    theirs = torch_nn.ModuleDict(
        {"layers": torch_nn.ModuleList(
            torch_nn.Linear(i, o, bias) for i, o in ((3, 5), (5, 4), (4, 2))
        )}
    )  # fmt: skip
    net = bridge.load_state_dict(ours, theirs.state_dict())
    x = torch.randn(7, 3)
    layers: Any = theirs["layers"]
    one, two, three = layers
    assert_same(net(x), three(torch.tanh(two(torch.tanh(one(x))))).detach())


def test_mlp_starts_as_linear_maps_do() -> None:
    def theirs() -> torch_nn.Module:
        return torch_nn.ModuleDict({"layers": torch_nn.ModuleList([torch_nn.Linear(7, 5)])})

    assert_same_start(lambda: nn.MLP((7, 5)), theirs)


def test_mlp_may_train_its_activation() -> None:
    net = nn.MLP((3, 4, 4, 1), nn.PReLU()).initialize(0)
    assert tree.summary(net).count == 3 * 4 + 4 + 4 * 4 + 4 + 4 + 1 + 1
    grads = func.grad(lambda m, x: m(x).sum())(net, -torch.ones(2, 3))
    assert isinstance(grads.activation, nn.PReLU) and grads.activation.weight.shape == (1,)


def test_mlp_refuses_what_are_no_sizes() -> None:
    with pytest.raises(ValueError, match=r"MLP\(sizes=\): expected at least two, got \(3,\)"):
        nn.MLP((3,))
    with pytest.raises(ValueError, match=r"MLP\(sizes\[1\]=\): must be at least 1, got 0"):
        nn.MLP((3, 0))
    wrong: Any
    for wrong in (3, (2, 2.0)):
        with pytest.raises(TypeError, match=r"MLP\(sizes"):
            nn.MLP(wrong)
    with pytest.raises(ValueError, match=r"^MLP: expected input of shape \(\*, 3\), got \(2, 4\)"):
        nn.MLP((3, 2)).initialize(0)(torch.ones(2, 4))
