"""What was gathered is not held between forward and backward: it is gathered again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import parallax
from parallax import Module, Parameter, func, nn, tree
from parallax import distributed as dist
from parallax._compat.regathering import regather
from parallax.core import notes
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from tests.meshes import alone, run, spread, whole


class Block(Module):
    weight: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).tanh()


class Net(Module):
    blocks: tuple[Block, ...]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Stacked(Module):
    blocks: nn.Stack

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)  # type: ignore[no-any-return]  # a Tensor


def net(width: int, *, stacked: bool = False) -> Any:
    values = torch.arange(3.0 * width * width).view(3, width, width).sin() / width
    blocks = tuple(Block(value.clone()) for value in values)
    return Stacked(nn.Stack.of(blocks)) if stacked else Net(blocks)


def gathering(structure: Structure, parts: Sequence[str]) -> Structure:
    """The structure in which calls of these modules gather; a plan for one process has none."""
    return structure.renote(
        lambda path, node: node.note._replace(gathered="dp" if notes.joined(*path) in parts else "")
    )


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor


# -- compiled -------------------------------------------------------------------------------------


def gathers(graph: Any) -> int:
    return [str(node.target) for node in graph.nodes].count(
        "_c10d_functional.all_gather_into_tensor_coalesced.default"
    )


@pytest.mark.parametrize("stacked", [False, True])
def test_a_compiled_graph_gathers_again(stacked: bool) -> None:
    counts: list[int] = []

    def compiler(module: Any, _: Any) -> Any:
        counts.append(gathers(module.graph))
        regather(module.graph)
        module.graph.lint()
        module.recompile()
        counts.append(gathers(module.graph))
        return module

    model, x = net(4, stacked=stacked), torch.arange(8.0).view(2, 4).cos()
    expected = func.grad(loss)(model, x)
    with alone(names=("dp",)) as mesh:
        placed = tree.map(lambda leaf: spread(leaf, mesh, Shard(leaf.ndim - 2)), model)
        leaves, structure = flatten_module(placed)
        parts = ["blocks.block"] if stacked else [f"blocks.{k}" for k in range(3)]
        part = unflatten_module(gathering(structure, parts), leaves)
        backend: Any = aot_autograd(fw_compiler=compiler)
        grads = parallax.compile(func.grad(loss), backend=backend)(part, spread(x, mesh, Shard(0)))
        for one, other in zip(tree.leaves(grads), tree.leaves(expected), strict=True):
            torch.testing.assert_close(whole(one), other)
    # Of the first part backward needs no weight; of the last it needs it at once.
    assert counts == [3, 4]


# -- on the tape ----------------------------------------------------------------------------------


def alive(numbers: int) -> int:
    """How many plain tensors of this size exist."""
    gc.collect()
    found = [x for x in gc.get_objects() if type(x) is Tensor and x.numel() == numbers]
    return len({x.untyped_storage().data_ptr() for x in found})


def _hold(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    model, x = net(64), torch.arange(128.0).view(2, 64).cos()
    part = dist.Plan(mesh, dp=dist.fsdp("blocks.*")).apply(model).reset(0)
    expected = model.reset(0)
    loss(expected, x).backward()
    del model
    rows = spread(x, mesh, Shard(0))
    before = alive(64 * 64)
    out = loss(part, rows)
    assert alive(64 * 64) == before  # no whole weight waits for backward
    out.backward(retain_graph=True)
    assert alive(64 * 64) <= before
    first = [leaf.grad.clone() for leaf in tree.leaves(part)]
    out.backward()
    for leaf, grad, other in zip(*map(tree.leaves, (part, first, expected)), strict=True):
        assert isinstance(leaf.grad, DTensor)
        torch.testing.assert_close(whole(grad), other.grad)
        torch.testing.assert_close(whole(leaf.grad), 2 * other.grad)
    _refuse_writes(part, rows)


def _refuse_writes(part: Any, rows: Tensor) -> None:
    class Writes(Block):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.mul_(2)
            return x @ self.weight

    (block, *_) = part.blocks
    leaves, structure = flatten_module(Writes(block.weight.detach()))
    writes = unflatten_module(gathering(structure, [""]), leaves)
    with pytest.raises(RuntimeError, match="written in place"):
        func.grad(lambda m, x: m(x).sum())(writes, rows)


def test_no_whole_weight_waits_for_backward(tmp_path: Path) -> None:
    run(_hold, tmp_path, 2)
