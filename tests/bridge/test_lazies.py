"""Lazy modules are refused, or learn their shapes from a sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from parallax import bridge


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3),
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5),
    )  # fmt: skip


def test_without_a_sample_the_error_says_to_give_one() -> None:
    with pytest.raises(
        ValueError, match=r"0.weight of LazyConv2d is not initialized.*lift\(model, sample=x\)"
    ):
        bridge.lift(model())


def test_a_module_that_was_called_is_lifted_as_any_other() -> None:
    called, x = model(), torch.randn(2, 3, 8, 8)
    called(x)
    called.eval()
    torch.testing.assert_close(bridge.lift(called)(x), called(x))


def test_a_sample_gives_shapes_and_leaves_the_original_lazy() -> None:
    original, x = model(), torch.randn(2, 3, 8, 8)
    before = {name: value.clone() for name, value in original[5].state_dict().items()}
    state = torch.get_rng_state()
    lifted = bridge.lift(original, sample=(x,))
    assert torch.equal(torch.get_rng_state(), state)
    assert lifted[0].weight.shape == (4, 3, 3, 3) and lifted[3].weight.shape == (3, 144)
    assert isinstance(lifted[0], bridge.lifted_type(nn.Conv2d)) and lifted.mode == "train"
    assert torch.equal(lifted[1].running_mean, torch.zeros(4))

    assert type(original[0]) is nn.LazyConv2d and original.training
    assert all(is_lazy(p) for p in original[0].parameters())
    for name, value in before.items():
        assert torch.equal(original[5].state_dict()[name], value)
    assert lifted[4].weight.data_ptr() == original[4].weight.data_ptr()  # type: ignore[operator]  # a module
    assert lifted[5].running_mean.data_ptr() == original[5].running_mean.data_ptr()  # type: ignore[operator]  # a module

    torch.manual_seed(0)
    again = bridge.lift(model(), sample=x)
    torch.manual_seed(0)
    by_torch = model()
    by_torch.eval()(x)
    for name, value in by_torch.state_dict().items():
        assert torch.equal(bridge.state_dict(again)[name], value)


def test_a_sample_changes_nothing_about_a_module_that_is_not_lazy() -> None:
    linear = nn.Linear(2, 2)
    assert bridge.lift(linear, sample=torch.ones(2)).weight.data_ptr() == linear.weight.data_ptr()
