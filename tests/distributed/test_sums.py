"""Tensor parallelism sums once where a layer ends, and once where backward leaves it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import parallax
from parallax import Module, func, nn
from parallax import distributed as dist
from tests.distributed.transformer import ROWS, Transformer, batch, loss
from tests.meshes import alone, ranks, spread, whole

# -- as many collectives as torch's own issue -----------------------------------------------------


class Attention(torch.nn.Module):
    """As that of ``Transformer``, with the heads that a process has."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        layers = self.q, self.k, self.v
        q, k, v = (layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in layers)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o(y.transpose(1, 2).flatten(2))
        return out


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = torch.nn.LayerNorm(16), Attention()
        self.up, self.down = torch.nn.Linear(16, 32), torch.nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x))
        y: Tensor = self.down(F.gelu(self.up(x)))
        return x + y


def of_torch(mesh: Any) -> Any:
    """The model with torch's tensor parallelism, and fully sharded."""
    blocks = [Block(), Block()]
    styles: Any = {f"attn.{name}": ColwiseParallel() for name in "qkv"}
    styles |= {"attn.o": RowwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in blocks:
        parallelize_module(block, mesh["tp"], styles)
        fully_shard(block, mesh=mesh["dp"])
    model = torch.nn.Sequential(torch.nn.Embedding(12, 16), *blocks, torch.nn.Linear(16, 12))
    return fully_shard(model, mesh=mesh["dp"])


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module", "ignore:Full backward hook")
def test_no_more_collectives_than_torch() -> None:
    codes, following = batch()
    with alone(2, 2, names=("dp", "tp")) as mesh:
        model = dist.Plan(mesh, dp=dist.fsdp("blocks.*"), tp=ROWS).apply(
            Transformer().initialize(0)
        )
        x, y = next(dist.Plan(mesh, dp=dist.replicate(), tp={}).batches([(codes, following)]))
        with CommDebugMode() as ours:
            func.grad(loss)(model, x, y)
        theirs = of_torch(mesh)
        with CommDebugMode() as mode:
            loss(theirs, codes[:4], following[:4]).backward()
    assert ours.get_total_counts() <= mode.get_total_counts()


def with_sequence(mesh: Any) -> Any:
    """The model with torch's tensor parallelism, whose norms and sums compute with positions."""
    whole_, cut = (Replicate(),), (Shard(1),)
    rows: Any = partial(RowwiseParallel, output_layouts=Shard(1), use_local_output=False)
    styles: Any = {"embed": rows(input_layouts=Replicate())}
    for name in ("blocks.0", "blocks.1"):
        styles |= {f"{name}.attn.{one}": ColwiseParallel() for one in "qkv"}
        styles |= {
            f"{name}.norm": SequenceParallel(use_local_output=False),
            f"{name}.attn": PrepareModuleInput(
                input_layouts=cut, desired_input_layouts=whole_, use_local_output=False
            ),
            f"{name}.attn.o": rows(),
            f"{name}.up": ColwiseParallel(input_layouts=Shard(1)),
            f"{name}.down": rows(),
        }
    model = torch.nn.Module()
    model.embed, model.blocks = torch.nn.Embedding(12, 16), torch.nn.Sequential(Block(), Block())
    return parallelize_module(model, mesh, styles)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_no_more_collectives_than_torch_with_a_sequence() -> None:
    with alone(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=dist.tensor_parallel(ROWS, sequence=1))
        model = plan.apply(Transformer().initialize(0))
        ((codes, _),) = plan.batches([batch()])
        with CommDebugMode() as ours:
            func.grad(lambda model: model(codes).square().mean())(model)
        theirs = with_sequence(mesh)
        with CommDebugMode() as mode:
            theirs.blocks(theirs.embed(batch()[0])).square().mean().backward()
    assert ours.get_total_counts() <= mode.get_total_counts()


def test_a_compiled_gradient_has_no_more_collectives() -> None:
    found: list[str] = []

    def compiler(module: Any, _: Any) -> Any:
        found.extend([str(node.target) for node in module.graph.nodes])
        return module

    model = nn.Sequential(nn.LayerNorm(4), Pair()).initialize(0)
    with alone(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=dist.tensor_parallel(CUT, sequence=1))
        placed, (rows,) = plan.apply(model), plan.batches([torch.ones(2, 4, 4)])
        with CommDebugMode() as mode:
            func.grad(size)(placed, rows)
        backend: Any = aot_autograd(fw_compiler=compiler)
        parallax.compile(func.grad(size), backend=backend)(placed, rows)
    counts = {str(op).rpartition(".")[2]: n for op, n in mode.get_comm_counts().items()}
    counts["all_reduce"] = counts.get("all_reduce", 0) + counts.pop("allreduce_", 0)  # in place
    assert counts["all_gather_into_tensor"] == 2
    for name, count in counts.items():
        assert found.count(f"_c10d_functional.{name}.default") == count


# -- numbers --------------------------------------------------------------------------------------


class Pair(Module):
    """Two layers that take one tensor, and one that takes both."""

    up: nn.Linear
    gate: nn.Linear
    down: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(4, 8), nn.Linear(4, 8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x) * self.gate(x).tanh())
        return x + y


CUT: Any = {"**.up.*": 0, "**.gate.*": 0, "**.down.weight": 1}


def size(model: Any, x: Tensor) -> Tensor:
    return model(x).square().sum()  # type: ignore[no-any-return]  # a Tensor


def slope(model: Any, x: Tensor) -> Tensor:
    grad: Tensor = func.grad(size, argnums=1)(model, x)
    return grad.square().sum()


HOW: Any = {
    "of an input": func.grad(size, argnums=1),
    "of a slope": func.grad(slope, argnums=1),
    "per sample": func.vmap(func.grad(size, argnums=1), in_dims=(None, 0)),
    "within torch.func": torch.func.grad(size, argnums=1),
}


@pytest.mark.parametrize("rule", [CUT, dist.tensor_parallel(CUT, sequence=1)], ids=["", "sequence"])
@pytest.mark.parametrize("how", HOW)
def test_derivatives(how: str, rule: Any) -> None:
    model = nn.Sequential(Pair(), Pair()).initialize(0)
    x = torch.arange(24.0).view(3, 2, 4).sin()
    expected = HOW[how](model, x)
    with ranks(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=rule)
        (rows,) = plan.batches([x])
        found = HOW[how](plan.apply(model), rows)
        torch.testing.assert_close(whole(found), expected)


def test_what_is_gathered_once_is_what_the_tensor_is() -> None:
    model = Pair().initialize(0)
    x = torch.arange(16.0).view(2, 2, 4).sin()
    expected = [model(x), model(2 * x)]
    with ranks(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=dist.tensor_parallel(CUT, sequence=1))
        (rows,), placed = plan.batches([x]), plan.apply(model)
        first: Any = placed(rows)
        rows.mul_(2)
        again: Any = placed(rows)
        for found, other in zip((first, again), expected, strict=True):
            assert found.placements == (Shard(1),)
            torch.testing.assert_close(whole(found), other)
        with torch.no_grad():
            without = placed(rows)
        rows.requires_grad_()
        found = placed(rows)
        assert torch.equal(whole(found), whole(without))
        found.square().sum().backward()
        torch.testing.assert_close(whole(rows.grad), func.grad(size, argnums=1)(model, 2 * x))


def test_a_users_tensor_gets_no_hook() -> None:
    model = Pair().initialize(0)
    x = torch.ones(2, 4)
    with ranks(2, names=("tp",)) as mesh:
        rows = spread(x, mesh, Replicate()).requires_grad_()
        placed = dist.Plan(mesh, tp=CUT).apply(model)
        size(placed, rows).backward()
        assert not rows._backward_hooks
        torch.testing.assert_close(whole(rows.grad), func.grad(size, argnums=1)(model, x))
