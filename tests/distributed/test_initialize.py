"""A model is initialized in parts, with the numbers that one process would draw."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Shard

import parallax
from parallax import Parameter, io, nn, tree
from parallax import distributed as dist
from parallax.random import initialize, shares
from tests.distributed.transformer import ROWS, small
from tests.meshes import alone, run, whole

RULES: Any = {"dp": dist.fsdp("blocks.*"), "tp": ROWS}


@pytest.mark.parametrize(
    ("make", "rules"),
    [(small, RULES), (partial(small, 3, stacked=True), RULES)],
)
def test_numbers_are_those_of_one_process(make: Any, rules: Any) -> None:
    expected = make().initialize(3)
    for rank in range(4):
        with alone(2, 2, rank=rank, names=("dp", "tp")) as mesh:
            found = make().initialize(3, plan=dist.Plan(mesh, **rules))
            for one, leaf in zip(*map(tree.leaves, (found, expected)), strict=True):
                assert one.shape == leaf.shape
                assert torch.equal(
                    one.to_local(), part(leaf, one.placements, (rank // 2, rank % 2))
                )


def part(leaf: Tensor, placements: Any, coordinates: tuple[int, int]) -> Tensor:
    """What a process of a mesh of (2, 2) holds of a leaf."""
    for placement, coordinate in zip(placements, coordinates, strict=True):
        if isinstance(placement, Shard):
            leaf = leaf.chunk(2, placement.dim)[coordinate]
    return leaf


def test_dtype_and_device_are_as_without_a_plan() -> None:
    with alone(2, 2, names=("dp", "tp")) as mesh:
        plan = dist.Plan(mesh, **RULES)
        half: Any = small().initialize(0, plan=plan, dtype=torch.bfloat16)
        expected = small().initialize(0, dtype=torch.bfloat16)
        assert torch.equal(half.head.weight.to_local(), expected.head.weight)
        empty: Any = small().initialize(0, plan=plan, device="meta")
        assert empty.head.weight.is_meta
        assert empty.blocks[0].up.weight.to_local().shape == (8, 4)
        with pytest.raises(TypeError, match=r"initialize\(plan=\): expected a distributed.Plan"):
            small().initialize(0, plan=mesh)
    lone = dist.Plan(dist.mesh(dp=1), dp=dist.fsdp("blocks.*"))
    assert tree.equal(small().initialize(0, plan=lone), small().initialize(0))
    with pytest.raises(RuntimeError, match=r"Plan\.initialize: this plan has the sizes"):
        small().initialize(0, plan=dist.Plan({"dp": 2}, dp=dist.replicate()))


# -- several processes ----------------------------------------------------------------------------


class Followed(parallax.Module):
    """Leaves that go by others, and one that has a value from the start."""

    layer: nn.WeightNorm
    rate: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.WeightNorm(nn.Linear(8, 4), "weight")
        self.rate = torch.arange(4.0)


class Large(parallax.Module):
    """Leaves of more than one piece, most of which are drawn without the rest."""

    blocks: tuple[nn.Linear, ...]
    stack: nn.Stack
    odd: Parameter

    def __init__(self) -> None:
        super().__init__()
        self.blocks = (nn.Linear(40, 64), nn.Linear(64, 40))
        self.stack = nn.Stack(nn.Linear(40, 40), 3)
        self.odd = Parameter((64, 40), torch.nn.init.trunc_normal_)


LARGE: Any = {
    "dp": dist.fsdp("blocks.*", "stack", "odd"), "tp": {"blocks.*.weight": 1, "odd": 1},
}  # fmt: skip


def _draw_in_pieces(rank: int, folder: str) -> None:
    for module in (shares, initialize):
        setattr(module, "PIECE", 256)  # noqa: B010  # checkers would see a constant that is written
    plan = dist.Plan(dist.mesh(dp=2, tp=2), **LARGE)
    model: Any = Large().initialize(1, plan=plan)
    expected = Large().initialize(1)
    for one, leaf in zip(tree.leaves(model), tree.leaves(expected), strict=True):
        assert torch.equal(whole(one), leaf)
    local: Any = model.blocks[0].weight
    assert local.placements == (Shard(0), Shard(1))
    assert local.to_local().shape == (32, 20)
    assert local.to_local().untyped_storage().nbytes() == 4 * 32 * 20
    for one, other in zip(*map(tree.leaves, (model, plan.apply(expected))), strict=True):
        assert torch.equal(one.to_local(), other.to_local())
    followed = Followed().initialize(
        0, plan=dist.Plan(plan.mesh, dp=dist.fsdp("**"), tp={"rate": 0})
    )
    assert tree.equal(plan.gather(followed), Followed().initialize(0))
    here = plan.gather(model, rank=1)
    assert (here is None) == (rank != 1)
    assert here is None or tree.equal(here, expected)
    io.save_distributed(model, f"{folder}/four")
    flat = dist.Plan(dist.mesh(dp=4, tp=1), **LARGE)
    again: Any = io.load_distributed(f"{folder}/four", like=Large().initialize(2, plan=flat))
    assert again.blocks[0].weight.to_local().shape == (16, 40)
    assert tree.equal(plan.gather(again), expected)


def test_large_leaves_are_drawn_in_pieces(tmp_path: Path) -> None:
    run(_draw_in_pieces, tmp_path, 4)
    like = Large().initialize(3)
    assert tree.equal(io.load_distributed(tmp_path / "four", like=like), Large().initialize(1))


class Wide(parallax.Module):
    layers: tuple[nn.Linear, ...]

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.layers = tuple(nn.Linear(width, 2 * width, bias=False) for _ in range(4))


def _memory() -> int:
    """The bytes that this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _measure_peak(rank: int, folder: str) -> None:
    plan = dist.Plan(dist.mesh(dp=2), dp=dist.fsdp("layers.*"))
    Wide(768).initialize(0, plan=plan)  # code takes memory, too, when it runs first
    Path("/proc/self/clear_refs").write_text("5")  # what was held at most is what is held now
    before = _memory()
    model: Any = Wide().initialize(0, plan=plan)
    peak = _memory() - before
    share = sum(leaf.to_local().nbytes for leaf in tree.leaves(model))
    assert share == 4 * 2048 * 4096 * 4 // 2
    assert peak < 1.15 * share + 4 * 4 * shares.PIECE, (peak, share)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
def test_a_process_holds_its_share_alone(tmp_path: Path) -> None:
    run(_measure_peak, tmp_path, 2)
