"""Compiled steps of distributed trees: the optimizer as one operator, donated memory, processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.device_mesh import init_device_mesh

import parallax
from parallax import distributed as dist
from parallax import func, nn, optim, tree
from tests.meshes import alone, run, whole


def net() -> Any:
    """Of more leaves than an optimizer steps one by one in a graph."""
    layers = (nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    return nn.Sequential(*layers)


def size(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor


OPT = optim.AdamW(lr=0.01, eps=1e-4)
FSDP = dist.fsdp("*")


def step(model: Any, state: Any, x: Tensor) -> Any:
    grads, value = func.grad_and_value(size)(model, x)
    return *OPT.step(model, grads, state), value


def rows() -> Tensor:
    return torch.arange(16.0).view(4, 4).sin()


def places(tree_: Any) -> set[int]:
    """Where this process holds the parts of a tree."""
    leaves: list[Any] = [leaf for leaf in tree.leaves(tree_) if leaf.ndim]
    return {leaf.to_local().data_ptr() for leaf in leaves}


def test_an_optimizer_is_one_operator_and_writes_into_donated_parts() -> None:
    found: list[str] = []

    def compiler(module: Any, _: Any) -> Any:
        found.extend([str(node.args[0]) for node in module.graph.nodes if node.args])
        return module

    with alone(2, names=("dp",)) as mesh:
        plan = dist.Plan(mesh, dp=FSDP)
        model: Any = plan.apply(net().initialize(0))
        state = OPT.init(model)
        (x,) = plan.batches([rows()])
        expected = step(model, state, x)
        backend: Any = aot_autograd(fw_compiler=compiler)
        once = parallax.compile(step, backend=backend, donate=("model", "state"))
        made: Any = once(model, state, x)
        for one, other in zip(*map(tree.leaves, (made, expected)), strict=True):
            torch.testing.assert_close(one, other)
        with pytest.raises(optim.DonatedError):
            model(x)
        model, state, _ = made
        held = places((model, state))  # the first step copies what shares its memory
        model, state, _ = once(model, state, x)
        assert places((model, state)) == held
    assert found.count("parallax.step_.default") == 1


def _train(rank: int, folder: str) -> None:
    del rank, folder
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    # In double precision, as Adam divides a small gradient and its rounding by one another.
    plain, batch = tree.to(net().initialize(0), dtype=torch.float64), rows().double()
    expected, state = plain, OPT.init(plain)
    values = []
    for _ in range(3):
        expected, state, value = step(expected, state, batch)
        values.append(value)
    plan = dist.Plan(mesh, dp=FSDP)
    model: Any = plan.apply(plain)
    (x,), state = plan.batches([batch]), OPT.init(model)
    once = parallax.compile(step, donate=("model", "state"))
    for value in values:
        model, state, found = once(model, state, x)
        torch.testing.assert_close(whole(found), value, rtol=0, atol=1e-12)
    for one, other in zip(*map(tree.leaves, (model, expected)), strict=True):
        torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-12)


def test_the_default_backend_in_two_processes(tmp_path: Path) -> None:
    run(_train, tmp_path, 2)
