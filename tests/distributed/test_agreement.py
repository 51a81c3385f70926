"""Processes that were told different things all say so, and none waits for another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parallax import distributed as dist
from parallax import tree
from tests.distributed.transformer import small
from tests.meshes import run


def _refused(said: str, call: Callable[[], Any], error: Any = ValueError) -> None:
    with pytest.raises(error, match=said):
        call()


def frozen_head() -> Any:
    return tree.select(small().initialize(0), "head.weight").freeze()


def _differ(rank: int, folder: str) -> None:
    first = rank == 0
    _refused(
        r"dist.mesh: the processes differ. In process 0 of 2 the call is dist.mesh\(dp=2, tp=1\); "
        r"in process 1 the call is dist.mesh\(dp=1, tp=2\)",
        lambda: dist.mesh(dp=2, tp=1) if first else dist.mesh(dp=1, tp=2),
    )
    mesh = dist.mesh(dp=2)
    plan = dist.Plan(mesh, dp=dist.fsdp("blocks.*"))
    other = dist.Plan(mesh, dp=dist.replicate())
    _refused(
        r"Plan.apply: the processes differ. In process 0 of 2 the plan is .*fsdp\('blocks.\*'\)\); "
        r"in process 1 the plan is .*replicate\(\)",
        lambda: (plan if first else other).apply(small().initialize(0)),
    )
    _refused(
        r"In process 0 of 2 head.weight is torch.float32\[3, 8\].*; in process 1 blocks.2.norm.w",
        lambda: plan.apply(small(2 if first else 3).initialize(0)),
    )
    _refused(
        r"initialize\(plan=\): the processes differ. In process 0 of 2 the seed is",
        lambda: small().initialize(rank, plan=plan),
    )
    # One fails by itself: it says why, and the other is told.
    bad = dist.Plan(mesh, dp=dist.fsdp("blocks.*" if first else "layers.*"))
    _refused(
        r"matches nothing: nothing in Transformer is at 'layers.\*'" if not first else
        r"in process 1 it raised LookupError: dist.Plan: the rule dp=fsdp\('layers.\*'\) matches",
        lambda: bad.apply(small().initialize(0)), ValueError if first else LookupError,
    )  # fmt: skip
    _refused(
        r"Plan.batches: the processes differ. .* the first batch is .*shuffle with one seed",
        lambda: next(plan.batches([torch.full((4, 2), float(rank))])),
    )
    _refused(
        r"In process 0 of 2 the loader has 3 batches; in process 1 the loader has 4 batches",
        lambda: next(plan.batches([torch.ones(4, 2)] * (3 + rank))),
    )
    assert len(list(plan.batches([torch.ones(4, 2)]))) == 1
    _check_later_batches(rank, plan)
    _refused(
        r"In process 0 of 2 head.weight is .*replicated, trained\); in process 1 head.weight is .*"
        r"replicated\)",
        lambda: plan.apply(frozen_head() if rank else small().initialize(0)),
    )
    # Nor does one that is given no argument at all of a function keep the others waiting.
    filled = small().initialize(0)
    for what, wrong, right, error in (
        ("Plan.apply", lambda: plan.apply(3), lambda: plan.apply(filled), TypeError),
        ("initialize", lambda: filled.initialize(0, plan=plan),
         lambda: small().initialize(0, plan=plan), RuntimeError),
        ("Plan.batches", lambda: plan.batches(None),  # type: ignore[arg-type]  # that is the error
         lambda: next(plan.batches([torch.ones(4, 2)])), TypeError),
    ):  # fmt: skip
        if rank:
            _refused(what if what != "initialize" else "is initialized already", wrong, error)
        else:
            _refused(rf"{what}.*: .* in process 1 it raised {error.__name__}", right)
    # Values that differ are those of the first process.
    model = plan.gather(plan.apply(small().initialize(rank)))
    assert torch.equal(model.blocks[0].up.weight, small().initialize(0).blocks[0].up.weight)
    half = plan.apply(small().initialize(rank, dtype=torch.bfloat16))
    assert plan.gather(half).head.weight.dtype is torch.bfloat16


def _check_later_batches(rank: int, plan: dist.Plan) -> None:
    sizes = ((4, 4), (4, 6))[rank]
    given = plan.batches([{"x": torch.ones(size, 2)} for size in sizes])
    next(given)
    _refused(
        r"In process 0 of 2 batch 1 has x of torch.float32\[4, 2\]; in process 1 batch 1 has x of "
        r"torch.float32\[6, 2\]. Give every process the same batches",
        lambda: next(given),
    )
    stream = plan.batches(torch.ones(4, 2) for _ in range(1 + rank))
    next(stream)
    _refused(
        r"In process 0 of 2 the loader ends after 1 batches; in process 1 batch 1 has a tensor of",
        lambda: next(stream),
    )

    def broken() -> Iterator[Any]:
        yield torch.ones(4, 2)
        raise OSError("no such image")

    read = plan.batches(broken() if rank else (torch.ones(4, 2) for _ in range(2)))
    next(read)
    _refused(
        "no such image" if rank else r"in process 1 it raised OSError: no such image",
        lambda: next(read), OSError if rank else ValueError,
    )  # fmt: skip


def test_differences_are_named_in_every_process(tmp_path: Path) -> None:
    run(_differ, tmp_path, 2)


def _die(rank: int, folder: str) -> None:
    plan = dist.Plan(dist.mesh(dp=2), dp=dist.fsdp("blocks.*"))
    if rank == 1:
        os._exit(0)  # without a word to the other
    with pytest.raises(RuntimeError):
        plan.apply(small().initialize(0))
    (Path(folder) / "told").touch()
    os._exit(0)


def test_a_process_that_dies_is_noticed_by_the_others(tmp_path: Path) -> None:
    run(_die, tmp_path, 2)
    assert (tmp_path / "told").exists()
