"""A run that is saved and resumed is the run that was not interrupted, on any mesh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from parallax import distributed as dist
from parallax import func, io, optim, random, tree
from tests.distributed.transformer import ROWS, Transformer, batch, loss
from tests.meshes import run

OPTIMIZER = optim.AdamW(lr=optim.schedules.CosineAnnealingLR(1e-3, T_max=8))
FSDP = dist.fsdp("blocks.*")


def start(plan: dist.Plan | None) -> dict[str, Any]:
    model = Transformer().initialize(0, plan=plan)
    return {"model": model, "state": OPTIMIZER.init(model), "step": 0, "key": random.key(7)}


def trained(run: dict[str, Any], plan: dist.Plan | None, steps: int) -> dict[str, Any]:
    """A few steps, each on the codes in an order of its own."""
    model, state, step, key = run["model"], run["state"], run["step"], run["key"]
    for _ in range(steps):
        order = random.permutation(random.fold_in(random.clone(key), step), 8)
        x, y = (codes[order] for codes in batch())
        ((x, y),) = [(x, y)] if plan is None else plan.batches([(x, y)])
        grads = func.grad(loss)(model, x, y)
        model, state = OPTIMIZER.step(model, grads, state)
        step += 1
    return {"model": model, "state": state, "step": step, "key": key}


def _interrupted(rank: int, folder: str) -> None:
    plan = dist.Plan(dist.mesh(dp=2), dp=FSDP)
    begun = trained(start(plan), plan, 2)
    saving = io.save_distributed(begun, f"{folder}/run", blocking=False)
    expected = trained(begun, plan, 2)  # communicates while it is saved
    assert saving.result() is None
    resumed = trained(io.load_distributed(f"{folder}/run", like=start(plan)), plan, 2)
    assert resumed["step"] == 4
    for part in ("model", "state"):
        pairs = zip(tree.leaves(resumed[part]), tree.leaves(expected[part]), strict=True)
        for found, wanted in pairs:
            assert type(found) is type(wanted)
            assert torch.equal(local(found), local(wanted))
    # Over another mesh, and in one process below.
    other = dist.Plan(dist.mesh(tp=2), tp=ROWS)
    again = trained(io.load_distributed(f"{folder}/run", like=start(other)), other, 2)
    close(other.gather(again), plan.gather(expected))
    whole = plan.gather(expected)
    if rank == 0:
        io.save(whole, f"{folder}/expected.pt")


def local(leaf: Any) -> Any:
    """What this process holds of a leaf."""
    return leaf.to_local() if isinstance(leaf, DTensor) else leaf


def close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    named = [tree.named_leaves(run["model"]) for run in (found, expected)]
    for name, leaf in named[1].items():
        if not name.endswith(".k.bias"):  # its gradient is zero but for rounding
            torch.testing.assert_close(named[0][name], leaf, rtol=0, atol=1e-6)


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    run(_interrupted, tmp_path, 2)
    expected = io.load(tmp_path / "expected.pt", like=start(None))
    close(trained(io.load_distributed(tmp_path / "run", like=start(None)), None, 2), expected)
    close(trained(start(None), None, 4), expected)
