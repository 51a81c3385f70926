"""Buffers: private in a call, effects when they changed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from parallax import bridge, effects, tree


def test_buffers_in_inference_mode() -> None:
    lifted = bridge.lift(nn.BatchNorm1d(2))
    x = torch.randn(4, 2)
    with torch.inference_mode():
        _, after = effects.collect(type(lifted).__call__)(lifted, x)
    _, expected = effects.collect(type(lifted).__call__)(lifted, x)
    assert torch.equal(after.running_mean, expected.running_mean)


def test_the_original_is_shown_while_storage_is_shared() -> None:
    model = nn.BatchNorm1d(2)
    lifted = bridge.lift(model).eval()
    lifted(torch.zeros(1, 2))
    model(torch.randn(8, 2) + 3)  # writes into the shared storage, behind a memo if there were one
    torch.testing.assert_close(lifted(torch.zeros(1, 2)), model.eval()(torch.zeros(1, 2)))


def test_a_running_statistic_written_by_a_class_of_ones_own() -> None:
    class Own(nn.Module):
        mean: Tensor
        var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("var", torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.batch_norm(x, self.mean, self.var, training=self.training)

    own = Own()
    lifted = bridge.lift(own)
    x = torch.randn(4, 2)
    _, after = effects.collect(type(lifted).__call__)(lifted, x)
    assert torch.equal(own.mean, torch.zeros(2))
    own(x)
    torch.testing.assert_close(after.mean, own.mean)
    torch.testing.assert_close(after.var, own.var)


def test_embedding_with_max_norm_does_not_scale_the_weight() -> None:
    model = nn.Embedding(4, 3, max_norm=0.5)
    lifted = bridge.lift(model)
    ids = torch.tensor([1, 2])
    before = model.weight.detach().clone()
    out = lifted(ids)
    assert torch.equal(model.weight, before) and torch.equal(lifted.weight, before)
    torch.testing.assert_close(out, model(ids).detach())


def test_a_buffer_that_is_not_a_number_is_no_change() -> None:
    class Holding(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.tensor([float("nan"), 1.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.table[1]

    lifted, x = bridge.lift(Holding()), torch.randn(2)
    assert torch.equal(lifted(x), x)


def test_a_call_on_the_meta_device() -> None:
    lifted = tree.to(bridge.lift(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()), "meta")
    assert lifted(torch.empty(5, 3, device="meta")).shape == (5, 2)


@pytest.mark.usefixtures("small_heap")
def test_no_buffer_stays_behind_after_a_call() -> None:
    model = nn.Module()
    model.register_buffer("table", torch.ones(2, 2))
    model.forward = lambda x: x
    lifted = bridge.lift(model, copy=True)
    there = weakref.ref(lifted.table)
    lifted(1)
    del lifted
    gc.collect()
    assert there() is None
