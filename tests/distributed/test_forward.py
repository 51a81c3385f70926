"""Derivatives along a direction, and column by column, of distributed trees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import Shard

from parallax import distributed as dist
from parallax import func, nn, tree
from tests.meshes import ranks, spread, whole


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("rule", [dist.replicate(), dist.fsdp("**")], ids=str)
def test_numbers_are_those_of_one_process(rule: Any) -> None:
    model: Any = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    model, rows = model.initialize(0), (torch.arange(32.0).view(8, 4).sin(), torch.arange(8) % 4)
    tangent = tree.map(torch.cos, model)

    def along(model: Any, tangent: Any, x: Any, y: Any) -> Any:
        return func.jvp(lambda m: loss(m, x, y), (model,), (tangent,))

    # Of plain trees torch takes the derivative in forward mode.
    expected, columns = along(model, tangent, *rows), func.jacfwd(loss)(model, *rows)
    with ranks(2, names=("dp",)) as mesh:
        plan = dist.Plan(mesh, dp=rule)
        x, y = (spread(t, mesh, Shard(0)) for t in rows)
        found = along(plan.apply(model), plan.apply(tangent), x, y)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(whole(one), other)
        got: Any = func.jacfwd(loss)(plan.apply(model), x, y)
        for leaf, plain in zip(tree.leaves(got), tree.leaves(columns), strict=True):
            torch.testing.assert_close(whole(leaf), plain, rtol=1e-5, atol=1e-6)
