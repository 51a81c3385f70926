"""A lowered layer has the names that torch.nn's layer has, whatever our fields are called."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallax import Module, Parameter, bridge, tree
from parallax import nn as pn

weight_norm = nn.utils.parametrizations.weight_norm
spectral_norm = nn.utils.parametrizations.spectral_norm


def ours() -> Any:
    inner = pn.Sequential(pn.WeightNorm(pn.Linear(3, 4)), pn.ReLU(), pn.BatchNorm1d(4))
    return pn.Sequential(inner, pn.SpectralNorm(pn.Linear(4, 4)), pn.LSTM(4, 2, bidirectional=True))


def theirs() -> nn.Sequential:
    torch.manual_seed(0)
    inner = nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.BatchNorm1d(4))
    return nn.Sequential(
        inner, spectral_norm(nn.Linear(4, 4)), nn.LSTM(4, 2, bidirectional=True)
    ).eval()


def test_names_are_torchs_in_torchs_order_and_its_checkpoint_loads() -> None:
    module, reference, x = ours().initialize(0).eval(), theirs(), torch.randn(5, 3)
    lowered = bridge.lower(module)
    assert list(lowered.state_dict()) == list(reference.state_dict())
    assert lowered.state_dict().keys() == bridge.state_dict(module).keys()
    # A torch.optim checkpoint knows parameters by their order.
    assert [n for n, _ in lowered.named_parameters()] == [
        n for n, _ in reference.named_parameters()
    ]
    lowered.load_state_dict(reference.state_dict())
    torch.testing.assert_close(lowered(x), reference(x))
    torch.testing.assert_close(lowered[0](x), reference[0](x))  # type: ignore[index]  # a Sequential
    torch.testing.assert_close(module(x), reference(x))  # it shares its tensors with the tree


def test_lift_is_the_inverse_and_modes_are_those_of_the_modules() -> None:
    module = ours().initialize(0)
    lowered = bridge.lower(module.eval())
    assert not any(part.training for part in lowered.modules())
    assert tree.equal(bridge.lift(lowered), module.eval())
    lowered[0].train()  # type: ignore[index]  # a Sequential
    again = bridge.lift(lowered)
    assert (again.mode, again[0].mode, again[0][0].layer.mode) == ("eval", "train", "train")
    assert again[1].layer.mode == "eval"


def test_it_trains_as_torchs_layers_do() -> None:
    lowered, reference = bridge.lower(ours().initialize(0)), theirs().train()
    lowered.load_state_dict(reference.state_dict())
    x = torch.randn(5, 3)
    for model in (lowered, reference):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x)[0].square().sum().backward()
        optimizer.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(lowered.state_dict()[name], value)


class Positions(nn.Module):
    """A lifted part that has a buffer which is in no state dict."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.table


class Wrapped(Module):
    """A part that torch has no module for."""

    inner: Module

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]  # a tensor

    @staticmethod
    def __state_name__(name: str, _: dict[str, Any]) -> str:
        return name.removeprefix("inner.")


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_lifted_part_whose_module_is_another_one_in_torch(depth: int) -> None:
    lifted = bridge.lift(Positions())
    module: Any = lifted
    for _ in range(depth):
        module = Wrapped(module)
    lowered = bridge.lower(pn.Sequential(module))
    assert (
        list(lowered.state_dict()) == list(bridge.state_dict(bridge.lift(lowered))) == ["0.scale"]
    )
    assert [name for name, _ in lowered.named_buffers()] == ["0.table"]
    torch.testing.assert_close(copy.deepcopy(lowered)(torch.ones(3)), torch.arange(3.0) + 1)


def test_two_leaves_of_one_name_are_an_error() -> None:
    class Twice(Module):
        a: Parameter
        b: Parameter

        @staticmethod
        def __state_name__(name: str, _: dict[str, Any]) -> str:
            return "c"

    for verb in (bridge.lower, bridge.state_dict):
        with pytest.raises(ValueError, match=r"two leaves of Twice are called 'c'.*Rename one"):
            verb(Twice(torch.ones(1), torch.ones(1)))


def test_what_requires_no_grad_any_more_is_lifted_frozen() -> None:
    lowered = bridge.lower(tree.select(ours().initialize(0), "layers.1.**.bias").freeze())
    assert tree.select(bridge.lift(lowered), "frozen").paths == ("layers.1.layer.bias",)
    lowered.requires_grad_(True)
    lowered[2].requires_grad_(False)  # type: ignore[index]  # a Sequential
    names = [name for name, p in nn.Module.named_parameters(lowered) if not p.requires_grad]
    frozen = tree.select(bridge.lift(lowered), "frozen").paths
    assert [path.replace("layers.2.weights", "2") for path in frozen] == names
