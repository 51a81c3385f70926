"""Transforms of ``torch.func`` within the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jvp as _jvp
from torch.func import vjp as _vjp

from parallax import tree
from tests.comparing import assert_close_trees
from tests.compiling import compiled
from tests.corpus import TiedModule, TiedParameter
from tests.interop.compile.steps import INPUT, loss_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


jvp: Any = _jvp  # annotated as if they always returned an auxiliary value
vjp: Any = _vjp


def test_second_order_inside() -> None:
    def penalty(module: Any, x: Tensor) -> Any:
        grads = torch.func.grad(loss_of)(module, x)
        return sum([g.pow(2).sum() for g in tree.leaves(grads)])

    fn, counter = compiled(torch.func.grad(penalty))
    for seed in range(2):
        module = TiedParameter().initialize(seed)
        assert_close_trees(fn(module, INPUT), torch.func.grad(penalty)(module, INPUT))
    assert counter.frame_count == 1


def test_vmap_of_an_ensemble_inside() -> None:
    def run(stacked: Any, x: Tensor) -> Any:
        return torch.vmap(torch.func.grad(loss_of), in_dims=(0, None))(stacked, x)

    members = [TiedParameter().initialize(seed) for seed in range(3)]
    stacked = tree.map(lambda *leaves: torch.stack(leaves), *members)
    fn, counter = compiled(run)
    got = fn(stacked, INPUT)
    for k, member in enumerate(members):
        one = tree.map(lambda leaf, k=k: leaf[k], got)
        assert_close_trees(one, torch.func.grad(loss_of)(member, INPUT))
    assert counter.frame_count == 1


def test_jvp_and_vjp_inside() -> None:
    def run(module: Any, x: Tensor) -> Any:
        value, pull = vjp(lambda m: m(x), module)
        (grads,) = pull(torch.ones_like(value))
        return grads, jvp(lambda m: m(x), (module,), (grads,))

    module = TiedModule().initialize(0)
    fn, _ = compiled(run)
    grads, pushed = fn(module, INPUT)
    expected, expected_pushed = run(module, INPUT)
    assert_close_trees(grads, expected)
    torch.testing.assert_close(pushed, expected_pushed)
