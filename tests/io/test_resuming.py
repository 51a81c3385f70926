"""A run goes on from a checkpoint with the very bits, whatever its leaves missed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parallax import Buffer, Module, bridge, io, optim, tree

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Run(Module):
    """All that a run is, as one tree."""

    model: Module
    states: dict[str, Module]
    steps: Buffer


OPTIMIZERS: dict[str, Any] = {
    **{
        name: getattr(optim, name)
        for name in ("ASGD", "Adadelta", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop",
                     "Rprop")
    },
    "SGD": lambda: optim.SGD(momentum=0.9, dampening=0.5),
    "Muon": lambda: optim.Split({lambda _, p: p.ndim == 2: optim.Muon()}, rest=optim.AdamW()),
    "Adafactor": lambda: optim.Adafactor(),
    "chain": lambda: optim.chain(optim.ClipNorm(1.0), optim.Adam(amsgrad=True)),
    "Accumulate": lambda: optim.Accumulate(optim.Adam(), 2),
    "of torch": lambda: optim.from_torch(torch.optim.Adam, lr=0.1, amsgrad=True),
}  # fmt: skip


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    return bridge.lift(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))


def gradients(k: int) -> Any:
    grads = tree.map(lambda p: torch.sin(p + k), model(1))
    holes = {1: "0.*", 2: "1.bias", 4: "1.bias"}
    return tree.partition(grads, holes[k])[1] if k in holes else grads


def run(opt: Any, start: Any, ks: range) -> Any:
    point, state = start.model, start.states["main"]
    for k in ks:
        point, state = opt.step(point, gradients(k), state)
    return Run(point, {"main": state}, start.steps + len(ks))


def begun(opt: Any, seed: int) -> Any:
    point = model(seed)
    return Run(point, {"main": opt.init(point)}, torch.tensor(0))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", ["file", "directory"])
def test_a_run_whose_leaves_missed_steps_goes_on(name: str, way: str, tmp_path: Path) -> None:
    opt = OPTIMIZERS[name]()
    half = run(opt, begun(opt, 0), range(6))
    if way == "file":
        io.save(half, tmp_path / "run.pt")
        found = io.load(tmp_path / "run.pt", like=begun(opt, 7))
    else:
        io.save_distributed(half, tmp_path / "run")
        found = io.load_distributed(tmp_path / "run", like=begun(opt, 7))
    assert tree.equal(found, half)
    assert tree.equal(run(opt, found, range(6, 9)), run(opt, half, range(6, 9)))


def test_a_state_is_not_taken_for_one_of_another_class(tmp_path: Path) -> None:
    adam, sums = optim.Adam(), optim.Accumulate(optim.Adam(), 2)
    io.save(begun(sums, 0), tmp_path / "run.pt")
    with pytest.raises(RuntimeError, match=r"Missing key.*states.main.step"):
        io.load(tmp_path / "run.pt", like=begun(adam, 0))
