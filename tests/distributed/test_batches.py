"""Each process takes its part of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.tensor import Replicate, Shard

from parallax import distributed as dist
from tests.meshes import ranks, whole

BATCH = {
    "x": torch.arange(24.0).view(8, 3),
    "y": torch.arange(8),
    "rate": torch.tensor(2.0),
    "n": 3,
}


@pytest.mark.parametrize(
    ("rules", "placements"),
    [
        ({"dp": dist.replicate(), "tp": {}}, (Shard(0), Replicate())),
        ({"dp": {}, "tp": dist.fsdp("**")}, (Replicate(), Shard(0))),
        ({"dp": dist.replicate(), "tp": dist.fsdp("**")}, (Shard(0), Shard(0))),
        ({"dp": {}, "tp": {}}, (Replicate(), Replicate())),
        ({"dp": dist.replicate(), "tp": dist.tensor_parallel({}, sequence=0)}, (Shard(0),) * 2),
    ],
)
def test_tensors_are_cut_over_the_dimensions_of_data(rules: Any, placements: Any) -> None:
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        found: list[Any] = list(dist.Plan(mesh, **rules).batches([BATCH, BATCH]))
        assert len(found) == 2
        for name in ("x", "y"):
            assert found[1][name].placements == placements
            assert torch.equal(whole(found[1][name]), BATCH[name])  # type: ignore[arg-type]
        assert found[0]["rate"].placements == (Replicate(), Replicate())
        assert found[0]["n"] == 3


def test_one_process_takes_all() -> None:
    plan = dist.Plan(dist.mesh(dp=1, tp=1))
    assert next(plan.batches([BATCH])) is BATCH


def test_batches_that_cannot_be_cut_are_refused() -> None:
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        plan = dist.Plan(mesh, dp=dist.replicate(), tp=dist.replicate())
        with pytest.raises(
            ValueError, match=r"x of the batch has 6 rows, which do not divide over 4 .*drop_last"
        ):
            next(plan.batches([{"x": torch.ones(6, 2)}]))
        plan = dist.Plan(mesh, dp=dist.replicate(), tp=dist.tensor_parallel({}, sequence=1))
        with pytest.raises(
            ValueError, match=r"x of the batch has 3 entries in dim.* over 2 .*\(tp\)"
        ):
            next(plan.batches([{"x": torch.ones(8, 3)}]))
        found: Any = next(plan.batches([{"x": torch.ones(8, 4, 3), "y": torch.arange(8)}]))
        assert found["x"].placements == (Shard(0), Shard(1))
        assert found["y"].placements == (Shard(0), Replicate())
        loader: Any = 5
        with pytest.raises(TypeError, match=r"batches\(loader=\): expected .* got 5"):
            plan.batches(loader)
    with pytest.raises(RuntimeError, match=r"Plan\.batches: this plan has the sizes"):
        dist.Plan({"dp": 2}, dp=dist.replicate()).batches([BATCH])
