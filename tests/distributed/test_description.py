"""What a plan says that each process holds and sends, against what it does."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.debug import CommDebugMode

from parallax import Module, func, nn, optim, tree
from parallax import distributed as dist
from tests.distributed.transformer import ROWS, small
from tests.meshes import alone, ranks

RULES: Any = {"dp": dist.fsdp("blocks.*"), "tp": ROWS}


def local_bytes(value: Any) -> int:
    """What a process holds of a tree."""
    parts = [leaf.to_local() if isinstance(leaf, DTensor) else leaf for leaf in tree.leaves(value)]
    return sum([part.nbytes for part in parts if isinstance(part, Tensor)])


@pytest.mark.parametrize("make", [small, partial(small, 3, stacked=True)])
def test_bytes_are_those_that_a_process_holds(make: Any) -> None:
    adam = optim.AdamW(lr=1e-3)
    sizes = {"dp": 2, "tp": 2}
    told = dist.Plan(sizes, **RULES).describe(make(), optimizer=adam)
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        model = dist.Plan(mesh, **RULES).apply(make().initialize(0))
        state = adam.init(model)
        assert told.parameters == told.gradients == local_bytes(model)
        assert told.state == local_bytes(state)
        for row, (path, leaf) in zip(told.rows, tree.named_leaves(model).items(), strict=True):
            assert (row.path, row.shape, row.dtype) == (path, leaf.shape, leaf.dtype)
            assert row.local_shape == leaf.to_local().shape
        summary = tree.summary(model)
        assert [row.placement for row in summary.rows] == [row.placement for row in told.rows]
        assert [row.here for row in summary.rows] == [row.nbytes for row in told.rows]
        assert summary.here == told.parameters < summary.nbytes


def test_a_declared_model_an_initialized_one_and_one_without_memory_are_alike() -> None:
    plan = dist.Plan({"dp": 2, "tp": 2}, **RULES)
    models = [small(), small().initialize(0), small().initialize(0, device="meta")]
    first, *others = [str(plan.describe(model, tokens=8)) for model in models]
    assert others == [first, first]


def test_what_is_printed() -> None:
    plan = dist.Plan(
        {"dp": 2, "tp": 2}, dp=dist.fsdp("layers.0"), tp={"**.0.weight": 0, "**.1.weight": 1}
    )
    layers = nn.Sequential(nn.Linear(4, 8, bias=False), nn.Linear(8, 4))
    assert str(plan.describe(layers, optimizer=optim.SGD(lr=1.0), tokens=3)) == EXPECTED


EXPECTED = """\
path             shape   dtype    placement                       local shape  bytes
------------------------------------------------------------------------------------
layers.0.weight  (8, 4)  float32  Shard(1) on dp, Shard(0) on tp  (4, 2)          32
layers.1.weight  (4, 8)  float32  Shard(1) on tp                  (4, 4)          64
layers.1.bias    (4,)    float32  replicated                      (4,)            16
------------------------------------------------------------------------------------
total: 3 leaves                                                                  112

bytes of one process
------------------------------------
parameters and buffers           112
gradients                        112
optimizer state                    4
largest gathered part: layers.0   64
------------------------------------
total, without activations       292

collectives of a step  along  of                       times  bytes sent
------------------------------------------------------------------------
all_gather             dp     parts in forward             1          32
all_gather             dp     parts in backward            1          32
reduce_scatter         dp     their gradients              1          32
all_reduce             dp     gradients                    1          80
all_reduce             tp     activations in forward       1          48
all_reduce             tp     activations in backward      1          48
------------------------------------------------------------------------
total                                                      6         272"""


# -- collectives ----------------------------------------------------------------------------------


class Pair(Module):
    up: nn.Linear
    gate: nn.Linear
    down: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(8, 16), nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x) * self.gate(x).tanh())
        return x + y


PAIRED: Any = {"**.up.*": 0, "**.gate.*": 0, "**.down.weight": 1}


def counts(told: Any) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in told.collectives:
        found[one.kind] = found.get(one.kind, 0) + one.times
    return found


def issued(mode: Any) -> dict[str, int]:
    names = {
        "all_gather_into_tensor": "all_gather", "allreduce_": "all_reduce",
        "reduce_scatter_tensor": "reduce_scatter",
    }  # fmt: skip
    found: dict[str, int] = {}
    for op, times in mode.get_comm_counts().items():
        name = str(op).rsplit(".", maxsplit=1)[-1].removesuffix("'>").removesuffix("_coalesced")
        found[names.get(name, name)] = found.get(names.get(name, name), 0) + times
    return found


def test_tensor_parallelism_sums_as_often_as_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Pair(), Pair()).initialize(0)
    x = torch.ones(3, 8)
    with ranks(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=PAIRED)
        spread = plan.apply(model)
        rows = DTensor.from_local(x, mesh, run_check=False)

        def loss(model: Any, x: Tensor) -> Tensor:
            return model(x).square().sum()  # type: ignore[no-any-return]  # a Tensor

        with CommDebugMode() as mode:
            func.grad(loss)(spread, rows)
        told = plan.describe(model, tokens=3)
        assert issued(mode) == counts(told) == {"all_reduce": 4}
    assert [one.nbytes for one in told.collectives] == [2 * 3 * 8 * 4] * 2  # half of it, twice


def test_a_sequence_is_gathered_and_scattered_as_often_as_is_told() -> None:
    model = nn.Sequential(nn.LayerNorm(8), Pair(), Pair()).initialize(0)
    with ranks(2, names=("tp",)) as mesh:
        plan = dist.Plan(mesh, tp=dist.tensor_parallel(PAIRED, sequence=1))
        spread = plan.apply(model)
        rows: Any = next(plan.batches([torch.ones(3, 4, 8)]))
        assert rows.placements == (Shard(1),)
        with CommDebugMode() as mode:
            func.grad(lambda model, x: model(x).square().sum())(spread, rows)
        told = plan.describe(model, tokens=12)
        assert issued(mode) == counts(told)
        assert counts(told) == {"all_gather": 4, "reduce_scatter": 4, "all_reduce": 1}
    assert [one.nbytes for one in told.collectives] == [2 * 12 * 8 * 4 // 2] * 4 + [2 * 8 * 4]


class Block(Module):
    up: nn.Linear
    down: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.up(x).tanh())
        return x + y


DATA_PARALLEL: list[tuple[dict[str, int], Any]] = [
    ({"dp": 4}, {"dp": dist.replicate()}),
    ({"dp": 4}, {"dp": dist.fsdp("layers.1", "layers.2")}),
    ({"dp": 2, "fsdp": 2}, {"dp": dist.replicate(), "fsdp": dist.fsdp("layers.[12]")}),
]


@pytest.mark.parametrize(("sizes", "rules"), DATA_PARALLEL)
def test_data_parallelism_communicates_as_often_as_is_told(
    sizes: dict[str, int], rules: Any
) -> None:
    def mean(model: Any, x: Tensor) -> Tensor:
        return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor

    first = nn.Linear(8, 8)
    blocks = nn.Sequential(first, Block(), Block())
    stack = nn.Sequential(first, nn.Stack(Block(), 2), nn.Linear(8, 8))
    for model in (blocks, stack):
        with alone(*sizes.values(), names=tuple(sizes)) as mesh:
            plan = dist.Plan(mesh, **rules)
            spread = model.initialize(0, plan=plan)
            (rows,) = plan.batches([torch.ones(8, 8)])
            with CommDebugMode() as mode:
                func.grad(mean)(spread, rows)
            assert issued(mode) == counts(plan.describe(model))


# -- paper scale ----------------------------------------------------------------------------------


class Attention(Module):
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear

    def __init__(self, width: int, shared: int) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = nn.Linear(width, shared, bias=False), nn.Linear(width, shared, bias=False)


class Feed(Module):
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.up = (
            nn.Linear(width, inner, bias=False),
            nn.Linear(width, inner, bias=False),
        )
        self.down = nn.Linear(inner, width, bias=False)


class Layer(Module):
    norm1: nn.RMSNorm
    attn: Attention
    norm2: nn.RMSNorm
    feed: Feed

    def __init__(self, width: int, shared: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attn, self.feed = Attention(width, shared), Feed(width, inner)


class Llama(Module):
    """The parameters of Llama 3 70B."""

    embed: nn.Embedding
    blocks: tuple[Layer, ...]
    norm: nn.RMSNorm
    head: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = tuple(Layer(WIDTH, SHARED, INNER) for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)


WORDS, WIDTH, SHARED, INNER, BLOCKS = 128_256, 8_192, 1_024, 28_672, 80
TOKENS = 8_192


def test_seventy_billion_parameters_on_4096_processes() -> None:
    plan = dist.Plan(
        {"dp": 64, "fsdp": 8, "tp": 8},
        dp=dist.replicate(),
        fsdp=dist.fsdp("blocks.*", "embed", "head"),
        tp={"**.attn.[qkv].weight": 0, "**.attn.o.weight": 1, "**.gate.weight": 0,
            "**.up.weight": 0, "**.down.weight": 1, "embed.weight": 1, "head.weight": 0},
    )  # fmt: skip
    told = plan.describe(Llama(), optimizer=optim.AdamW(lr=1e-4), tokens=TOKENS)
    matrices = 2 * WIDTH * WIDTH + 2 * WIDTH * SHARED + 3 * WIDTH * INNER
    block = matrices // 64 + 2 * WIDTH // 8  # tp leaves the norms whole
    words = WORDS * WIDTH
    share = 4 * (BLOCKS * block + 2 * words // 64 + WIDTH)
    assert told.parameters == told.gradients == share
    assert 2 * share <= told.state < 2 * share + 1000  # and the number of the step
    assert (told.part, told.gathered) == ("embed", 4 * words // 8)
    gathered = 4 * (BLOCKS * (matrices // 8 + 2 * WIDTH) + 2 * words // 8)
    sums = 2 * BLOCKS * TOKENS * WIDTH * 4
    found = {(one.kind, one.dimension, one.why): one[3:] for one in told.collectives}
    assert found == {
        ("all_gather", "fsdp", "parts in forward"): (82, gathered * 7 // 8),
        ("all_gather", "fsdp", "parts in backward"): (82, gathered * 7 // 8),
        ("reduce_scatter", "fsdp", "their gradients"): (82, gathered * 7 // 8),
        ("all_reduce", "fsdp", "gradients"): (1, 4 * WIDTH * 2 * 7 // 8),
        ("all_reduce", "dp", "gradients"): (83, share * 2 * 63 // 64),
        ("all_reduce", "tp", "activations in forward"): (2 * BLOCKS, sums * 2 * 7 // 8),
        ("all_reduce", "tp", "activations in backward"): (2 * BLOCKS, sums * 2 * 7 // 8),
    }


# -- what is shown of a spread module -------------------------------------------------------------


def test_a_spread_module_shows_how() -> None:
    layer = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3))
    with ranks(2, 2, names=("dp", "tp")) as mesh:
        plan = dist.Plan(mesh, dp=dist.fsdp("layers.0"), tp={"layers.0.weight": 0})
        spread = plan.apply(layer.initialize(0))
        assert repr(spread) == (
            "Sequential(\n"
            "  (0): Linear(in_features=4, out_features=6, bias=False) "
            "(Shard(1) on dp, Shard(0) on tp)\n"
            "  (1): Linear(in_features=6, out_features=3, bias=True) (replicated)\n"
            ")"
        )
        lines = str(tree.summary(spread)).split("\n")
        assert lines[0].split() == [
            "path", "class", "shape", "dtype", "count", "bytes", "trainable", "placement", "here",
        ]  # fmt: skip
        assert lines[2].endswith("yes        Shard(1) on dp, Shard(0) on tp    24")
        assert lines[-1].endswith("108")
    assert "placement" not in str(tree.summary(layer))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"module": torch.nn.Linear(2, 2)}, TypeError, r"bridge.lift\(module\)"),
        ({"tokens": -1}, TypeError, r"tokens=\): expected the number of rows"),
        (
            {"optimizer": "adam"},
            TypeError,
            r"optimizer=\): expected an optimizer of parallax.optim",
        ),
    ],
)
def test_what_cannot_be_described_is_refused(given: Any, error: Any, said: str) -> None:
    plan = dist.Plan({"dp": 2}, dp=dist.replicate())
    with pytest.raises(error, match=said):
        plan.describe(given.pop("module", small().initialize(0)), **given)
