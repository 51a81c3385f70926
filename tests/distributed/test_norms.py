"""Norms and convolutions whose batch, channels or features are cut, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

import parallax
from parallax import Module, effects, func, nn, tree
from parallax import distributed as dist
from tests.meshes import run, whole

CUT = {"before.*": 0, "norm.[wb]*": 0, "after.weight": 1}


class Net(Module):
    before: Module
    norm: Module
    after: Module

    def forward(self, x: Tensor) -> Any:
        model: Any = self
        return model.after(model.norm(model.before(x)).tanh())


def linear(norm: Any) -> Any:
    return Net(nn.Linear(4, 8), norm, nn.Linear(8, 4)), numbers(4, 3, 4)


def convolved(norm: Any) -> Any:
    return Net(nn.Conv2d(3, 8, 3), norm, nn.ConvTranspose2d(8, 2, 2)), numbers(4, 3, 5, 5)


def numbers(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64).view(shape).sin()


NORMS: dict[str, tuple[Any, Any]] = {
    name: (tree.map(lambda leaf: leaf + 0.1, tree.to(net.initialize(0), dtype=torch.float64)), x)
    for name, (net, x) in {
        "layer": linear(nn.LayerNorm(8)),
        "rms": linear(nn.RMSNorm(8)),
        "group": convolved(nn.GroupNorm(4, 8)),
        "batch": convolved(nn.BatchNorm2d(8)),
        "instance": convolved(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
    }.items()
}
"""With their inputs."""


def stepped(model: Any, x: Tensor) -> Any:
    """Gradients, and what the running statistics become."""

    def loss(model: Any, x: Tensor) -> Any:
        out, after = effects.collect(lambda model, x: model(x))(model, x)
        return out.square().mean(), after

    return func.grad(loss, has_aux=True)(model.train(0), x)


def check(name: str, plan: Any, model: Any, x: Tensor, expected: Any, step: Any) -> None:
    (rows,) = plan.batches([x])
    start = plan.apply(model)
    found = step(start, rows)
    for one, other, leaf in zip(*map(tree.leaves, (found[1], expected[1], start)), strict=True):
        torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-12, msg=name)
        assert one.placements == leaf.placements
    for one, other in zip(*map(tree.leaves, (found[0], expected[0])), strict=True):
        torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-12, msg=name)


def _train(rank: int, folder: str) -> None:
    dp, tp = (init_device_mesh("cpu", (2,), mesh_dim_names=(name,)) for name in ("dp", "tp"))
    copies, cut = dist.Plan(dp, dp=dist.replicate()), dist.Plan(tp, tp=CUT)
    for name, (model, x) in NORMS.items():
        expected = stepped(model, x)
        check(name, copies, model, x, expected, stepped)
        check(name, cut, model, x, expected, stepped)
    compiled = parallax.compile(stepped, backend="aot_eager")
    check("compiled", cut, *NORMS["batch"], stepped(*NORMS["batch"]), compiled)


def test_norms_in_two_processes(tmp_path: Path) -> None:
    run(_train, tmp_path, 2)
