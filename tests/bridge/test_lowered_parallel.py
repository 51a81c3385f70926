"""torch's own ways to many processes find the modules of a lowered model, and act on them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import nn as torch_nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import SplitPoint, pipe_split, pipeline
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from parallax import Module, bridge, nn
from tests import meshes


class Block(Module):
    """Pre-norm, with a tensor of its own and a part whose weight is read."""

    norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(Module):
    embed: nn.Embedding
    blocks: tuple[Block, ...]
    head: nn.Linear

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net() -> Any:
    blocks = tuple(Block(nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)) for _ in range(2))
    return bridge.lower(Net(nn.Embedding(10, 8), blocks, nn.Linear(8, 10)).initialize(0))


TOKENS = torch.arange(24).view(4, 6) % 10


def trained(model: Any, tokens: Tensor) -> list[Tensor]:
    """The losses of three steps."""
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, foreach=False)
    for _ in range(3):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def whole_state(model: Any) -> dict[str, Tensor]:
    found = {name: meshes.whole(value) for name, value in model.state_dict().items()}
    return {name.removeprefix("module."): value for name, value in found.items()}


def work(rank: int, folder: str) -> None:
    """All of it in one group of processes, for starting them takes the time."""
    mesh = init_device_mesh("cpu", (2,))
    mine = TOKENS.chunk(2)[rank]

    sharded = net()
    seen: list[int] = []
    for block in sharded.blocks:
        fully_shard(block, mesh=mesh)
        block.norm.register_forward_hook(lambda *_: seen.append(1))
    fully_shard(sharded, mesh=mesh)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    assert isinstance(sharded.blocks[0], bridge.Lowered)
    sharded_losses = trained(sharded, mine)
    assert len(seen) == 6

    split = net()
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in split.blocks:
        parallelize_module(block, mesh, plan)
    assert isinstance(split.blocks[0].up.weight, DTensor)
    split_losses = trained(split, TOKENS)

    replicated = torch_nn.parallel.DistributedDataParallel(net())
    replicated_losses = trained(replicated, mine)

    found = {"sharded": (whole_state(sharded), sharded_losses)}
    found["split"] = whole_state(split), split_losses
    found["replicated"] = whole_state(replicated), replicated_losses
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_fsdp2_of_blocks_tensor_parallel_and_ddp_train_as_one_process(tmp_path: Path) -> None:
    meshes.run(work, tmp_path, 2)
    reference = net()
    losses = trained(reference, TOKENS)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for kind, (state, _) in found[0].items():
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(
                state[name], value, rtol=1e-4, atol=1e-5, msg=f"{kind} {name}"
            )
        both = [torch.stack(rank[kind][1]) for rank in found]
        mean = both[0] if kind == "split" else (both[0] + both[1]) / 2
        torch.testing.assert_close(mean, torch.stack(losses), rtol=1e-5, atol=1e-6)


class Halves(Module):
    blocks: tuple[nn.Linear, ...]

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](x)
        pipe_split()
        return self.blocks[1](torch.tanh(x))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of torch's own copies
def test_pipelines_are_split_at_children_and_in_forward() -> None:
    x = torch.randn(4, 8)
    layers = [nn.Linear(8, 8).initialize(seed) for seed in range(4)]
    sequence = nn.Sequential(layers[0], torch.tanh, nn.LayerNorm(8).initialize(0), layers[1])
    by_spec: Any = bridge.lower(sequence)
    pipe = pipeline(copy.deepcopy(by_spec), (x,), split_spec={"2": SplitPoint.BEGINNING})
    check_pipe(
        pipe, by_spec, x, [{"0.weight", "0.bias"}, {"2.weight", "2.bias", "3.weight", "3.bias"}]
    )
    in_forward: Any = bridge.lower(Halves((layers[2], layers[3])))
    pipe = pipeline(in_forward, (x,))
    sizes = [{f"blocks.{k}.weight", f"blocks.{k}.bias"} for k in range(2)]
    check_pipe(pipe, in_forward, x, sizes)


def check_pipe(pipe: Any, model: Any, x: Tensor, names: list[set[str]]) -> None:
    assert pipe.num_stages == 2
    stages = [pipe.get_stage_module(k) for k in range(2)]
    assert [{name for name, _ in stage.named_parameters()} for stage in stages] == names
    torch.testing.assert_close(stages[1](stages[0](x)), model(x))


@pytest.mark.parametrize("wrapped", ["stack", "computed"])
def test_blocks_that_forward_takes_apart_cannot_be_sharded_by_themselves(wrapped: str) -> None:
    model: Any
    if wrapped == "stack":
        model = bridge.lower(nn.Stack(nn.Sequential(nn.Linear(8, 8)), 2).initialize(0))
        part = model.block
    else:
        inner = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model = bridge.lower(nn.WeightNorm(inner, "0.weight").initialize(0))
        part = model.get_submodule("1")
    with meshes.alone() as mesh:
        fully_shard(part, mesh=mesh)
        with pytest.raises(
            RuntimeError, match=r"the lowered module '(block|1)' has a forward pre-"
        ):
            model(torch.randn(4, 8))
