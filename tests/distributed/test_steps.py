"""Training steps of distributed trees: the numbers of one process, and what is communicated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils.checkpoint import checkpoint

import parallax
from parallax import Module, Parameter, func, optim, tree
from parallax import distributed as dist
from tests.distributed.transformer import ROWS, Transformer, batch, loss
from tests.meshes import ranks, run, spread, whole

FSDP, COPIES = dist.fsdp("blocks.*"), dist.replicate()
BY_RULE = dist.tensor_parallel(ROWS, sequence=1)
BATCH, SEQUENCE = {"dp": 0}, {"dp": 0, "tp": 1}
PLANS: Any = {
    "replicate": ({"dp": 2}, {"dp": COPIES}, BATCH),
    "fsdp": ({"dp": 4}, {"dp": FSDP}, BATCH),
    "sequence": ({"tp": 2}, {"tp": ROWS}, SEQUENCE),
    "sequence by rule": ({"tp": 2}, {"tp": BY_RULE}, SEQUENCE),
    "fsdp and tp": ({"dp": 2, "tp": 2}, {"dp": FSDP, "tp": ROWS}, BATCH),
    "tp and fsdp": ({"tp": 2, "dp": 2}, {"dp": FSDP, "tp": BY_RULE}, SEQUENCE),
    "copies of parts": ({"dp": 2, "fsdp": 2}, {"dp": COPIES, "fsdp": FSDP}, {"dp": 0, "fsdp": 0}),
}


def cut(mesh: Any, tensor: Tensor, along: dict[str, int]) -> Any:
    """A batch, cut along dimensions of the mesh."""
    names = mesh.mesh_dim_names
    places = [Shard(along[name]) if name in along else Replicate() for name in names]
    return spread(tensor, mesh, *places)


def check(found: Any, expected: Any, like: Any, bound: float = 1e-6) -> None:
    """The numbers of one process, in the placements of a model."""
    pairs = zip(*map(tree.leaves, (found, expected, like)), strict=True)
    for one, other, leaf in pairs:
        assert one.placements == leaf.placements
        assert one.to_local().shape == leaf.to_local().shape
        torch.testing.assert_close(whole(one), other, rtol=0, atol=bound)


def by_backward(model: Any, x: Tensor, y: Tensor) -> Any:
    model = model.reset(0)
    loss(model, x, y).backward()
    return model.grad()


def by_checkpoint(model: Any, x: Tensor, y: Tensor) -> Any:
    def recomputed(model: Any, x: Tensor, y: Tensor) -> Any:
        value = model.embed(x)
        for block in model.blocks:
            value = checkpoint(block, value, use_reentrant=False)
        return F.cross_entropy(model.head(value).flatten(0, 1), y.flatten())

    return func.grad(recomputed)(model, x, y)


HOW: dict[str, Callable[..., Any]] = {
    "grad": func.grad(loss), "backward": by_backward, "checkpoint": by_checkpoint,
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
def test_gradients(plan: str) -> None:
    sizes, rules, along = PLANS[plan]
    model, rows = Transformer().initialize(0), batch()
    expected = func.grad_and_value(loss)(model, *rows)
    with ranks(*sizes.values(), names=tuple(sizes)) as mesh:
        spread_ = dist.Plan(mesh, **rules).apply(model)
        x, y = (cut(mesh, t, along) for t in rows)
        grads, value = func.grad_and_value(loss)(spread_, x, y)
        check(grads, expected[0], spread_)
        torch.testing.assert_close(whole(value), expected[1])


@pytest.mark.parametrize("how", HOW)
def test_gradients_of_parts_that_are_gathered(how: str) -> None:
    model, rows = Transformer().initialize(0), batch()
    expected = func.grad(loss)(model, *rows)
    with ranks(2, names=("dp",)) as mesh:
        spread_ = dist.Plan(mesh, dp=FSDP).apply(model)
        x, y = (cut(mesh, t, BATCH) for t in rows)
        check(HOW[how](spread_, x, y), expected, spread_)


class Scales(Module):
    """A part with a frozen leaf and one that is used in no operator with a batch."""

    by: Parameter
    fixed: Parameter
    unused: Parameter
    empty: Parameter

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.by).tanh() @ self.fixed


def scales() -> Any:
    leaves = [torch.arange(64.0).view(8, 8).sin() + k for k in range(3)]
    return tree.select(Scales(*[*leaves, torch.ones(0, 8)]), "fixed").freeze()


def test_second_derivatives_frozen_and_unused_leaves() -> None:
    def size(model: Any, x: Tensor) -> Tensor:
        return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor

    def slope(model: Any, x: Tensor) -> Tensor:
        grads = func.grad(size)(model, x)
        return grads.by.square().sum()  # type: ignore[no-any-return]  # a Tensor

    model, x = scales(), torch.arange(32.0).view(4, 8).cos()
    with ranks(4, names=("dp",)) as mesh:
        spread_ = dist.Plan(mesh, dp=dist.fsdp("*")).apply(model)
        rows = cut(mesh, x, BATCH)
        for of in (size, slope):
            found, expected = func.grad(of)(spread_, rows), func.grad(of)(model, x)
            assert found.fixed is None
            torch.testing.assert_close(whole(found.by), expected.by, rtol=1e-5, atol=1e-6)
            assert found.by.placements == (Shard(0),)
            assert torch.equal(whole(found.unused), expected.unused)


@pytest.mark.parametrize("rows", [Replicate(), Shard(0)], ids=str)
def test_per_sample_gradients_of_a_part_that_is_gathered(rows: Any) -> None:
    def size(model: Any, x: Tensor) -> Tensor:
        return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor

    model, x = scales(), torch.arange(64.0).view(4, 2, 8).cos()
    each = func.vmap(func.grad(size), in_dims=(None, 0))
    expected = each(model, x)
    with ranks(2, names=("dp",)) as mesh:
        part = dist.Plan(mesh, dp=dist.fsdp("*")).apply(model)
        found = each(part, spread(x, mesh, rows))
        torch.testing.assert_close(whole(found.by), expected.by)
        assert found.by.placements == (Shard(1),)


# -- communication --------------------------------------------------------------------------------


def counted(call: Callable[[], Any]) -> dict[str, int]:
    """How many collectives a call issues, by their names."""
    with CommDebugMode() as mode:
        call()
    names = {"allreduce_": "all_reduce"}  # of the same collective in place
    found = Counter[str]()
    for operator, times in mode.get_comm_counts().items():
        name = str(operator).rpartition(".")[2]
        found[names.get(name, name)] += times
    return found


def cross_entropy(logits: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), following.flatten())


def _measure(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    model = Transformer().initialize(0)
    x, y = (cut(mesh, t, BATCH) for t in batch())
    parts = Transformer().initialize(0, plan=dist.Plan(mesh, dp=FSDP))
    copies = dist.Plan(mesh, dp=COPIES).apply(model)
    # Beside those of the loss itself, which each release of torch computes in another way.
    logits = cut(mesh, torch.randn(8, 8, 12), BATCH)
    own = counted(partial(func.grad(cross_entropy), logits, y))
    gathered = {
        "all_gather_into_tensor_coalesced": 4, "reduce_scatter_tensor": 2, "all_reduce": 1,
    }  # fmt: skip
    for held, more in ((copies, {"all_reduce": 1}), (parts, gathered)):
        for how in (func.grad(loss), by_backward):
            assert counted(partial(how, held, x, y)) == Counter(own) + Counter(more)
    stacked = Transformer(stacked=True).initialize(0)
    expected = func.grad(loss)(stacked, *batch())
    blocks = dist.Plan(mesh, dp=dist.fsdp("blocks")).apply(stacked)
    check(func.grad(loss)(blocks, x, y), expected, blocks)
    assert counted(partial(func.grad(loss), blocks, x, y)) == Counter(own) + Counter(gathered)
    _check_training(mesh, model, {"fsdp": parts, "replicate": copies}, (x, y))
    _check_averages(dist.Plan(mesh, dp=FSDP), model)
    _check_in_double_precision(mesh)


def _check_in_double_precision(mesh: Any) -> None:
    """Nothing but the order of sums differs: in double precision as little as that does."""
    opt = optim.AdamW(lr=0.01)

    def trained(model: Any, x: Tensor, y: Tensor) -> Any:
        state = opt.init(model)
        for _ in range(5):
            model, state = opt.step(model, func.grad(loss)(model, x, y), state)
        return {k: whole(leaf) for k, leaf in tree.named_leaves(model).items()}

    start = tree.to(Transformer().initialize(0), dtype=torch.float64)
    expected = trained(start, *batch())
    tp = _renamed(mesh)
    for plan in (
        dist.Plan(mesh, dp=COPIES), dist.Plan(mesh, dp=FSDP),
        dist.Plan(tp, tp=ROWS), dist.Plan(tp, tp=BY_RULE),
    ):  # fmt: skip
        (rows,) = plan.batches([batch()])
        for path, found in trained(plan.apply(start), *rows).items():
            bound = 1e-10 if path.endswith("k.bias") else 1e-12  # the slope of k.bias is zero
            torch.testing.assert_close(found, expected[path], rtol=0, atol=bound, msg=path)


OPT = optim.AdamW(lr=1e-3)


def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
    grads, value = func.grad_and_value(loss)(model, x, y)
    return (*OPT.step(model, grads, state), value)


def trained(step: Callable[..., Any], model: Any, x: Tensor, y: Tensor) -> Any:
    state, values = OPT.init(model), []
    for _ in range(5):
        model, state, value = step(model, state, x, y)
        values.append(whole(value))
    return model, state, torch.stack(values)


def slopes(model: Any) -> Any:
    """The least that the slope of each entry was in five steps of double precision."""
    now = tree.to(model, dtype=torch.float64)
    state, least = OPT.init(now), tree.map(lambda leaf: leaf.abs() + torch.inf, now)
    for _ in range(5):
        grads = func.grad(loss)(now, *batch())
        least = tree.map(lambda one, grad: torch.minimum(one, grad.abs()), least, grads)
        now, state = OPT.step(now, grads, state)
    return least


def check_trained(name: str, found: Any, expected: Any, like: Any) -> None:
    """The numbers of one process, in the placements of a model.

    Adam divides a gradient by its own size. One that is zero but for rounding moves its entry by
    any part of the learning rate, in one process as well: those below 1e-7 are left out.
    """
    (model, state, values), (wanted, _, losses), least = found, expected, slopes(plain(like))
    assert (values - losses).abs().max() <= 1e-6, name
    rows = zip(*map(tree.leaves, (model, wanted, like, least)), strict=True)
    for one, other, leaf, slope in rows:
        assert one.placements == leaf.placements
        away = (whole(one) - other).abs()[slope >= 1e-7]
        assert away.numel() == 0 or away.max() <= 1e-6, name
    held = {leaf.shape: leaf.to_local().numel() for leaf in tree.leaves(like)}
    for leaf in tree.leaves(state):
        if isinstance(leaf, DTensor):
            assert leaf.to_local().numel() <= held[leaf.shape]


def plain(model: Any) -> Any:
    return tree.map(whole, model)


def _check_training(mesh: Any, model: Any, placed: dict[str, Any], rows: Any) -> None:
    short = Transformer(count=1).initialize(0)  # dynamo takes seconds for each block
    two, one = (trained(step, start, *batch()) for start in (model, short))
    tp = _renamed(mesh)
    tensor_parallel = dist.Plan(tp, tp=ROWS).apply(model)
    copies = [cut(tp, t, {}) for t in batch()]
    plan = dist.Plan(tp, tp=BY_RULE)
    sequence, (positions,) = plan.apply(short), plan.batches([batch()])
    parts = dist.Plan(mesh, dp=FSDP).apply(short)
    compiled = parallax.compile(step, backend="eager")
    ways: list[Any] = [
        ("fsdp", two, placed["fsdp"], rows, step),
        ("replicate", two, placed["replicate"], rows, step),
        ("tp", two, tensor_parallel, copies, step),
        ("compiled sequence", one, sequence, positions, compiled),
        ("compiled fsdp", one, parts, rows, compiled),
    ]
    for name, expected, start, data, how in ways:
        check_trained(name, trained(how, start, *data), expected, start)


def _train_four(rank: int, folder: str) -> None:
    model = Transformer().initialize(0)
    expected = trained(step, model, *batch())
    for name, (sizes, rules, _) in PLANS.items():
        if len(sizes) == 2 or sizes == {"dp": 4}:
            plan = dist.Plan(dist.mesh(**sizes), **rules)
            start: Any = Transformer().initialize(0, plan=plan)
            (rows,) = plan.batches([batch()])
            check_trained(name, trained(step, start, *rows), expected, start)
    short = Transformer(count=1).initialize(0)
    plan = dist.Plan(dist.mesh(dp=2, tp=2), dp=FSDP, tp=ROWS)
    start, (rows,) = plan.apply(short), plan.batches([batch()])
    found = trained(parallax.compile(step, backend="eager"), start, *rows)
    check_trained("compiled", found, trained(step, short, *batch()), start)


def test_training_in_four_processes(tmp_path: Path) -> None:
    run(_train_four, tmp_path, 4)


def _check_averages(plan: dist.Plan, model: Any) -> None:
    """Averages of parameters and sums of gradients: held in parts, as the model is."""
    codes, following = batch()
    halves = [(codes[:4], following[:4]), (codes[4:], following[4:])]
    first, second = [func.grad(loss)(model, *half) for half in halves]
    after = tree.map(lambda p, a, b: p - 0.5 * (a + b) / 2, model, first, second)
    mean = tree.map(lambda p, q: 0.75 * p + 0.25 * q, model, after)
    opt, ema = optim.Accumulate(optim.SGD(lr=0.5), every=2), optim.EMA(0.75)
    now = start = plan.apply(model)
    state, average = opt.init(start), ema.update(ema.init(start), start)
    for expected, rows in zip((first, None), plan.batches(halves), strict=True):
        now, state = opt.step(now, func.grad(loss)(now, *rows), state)
        if expected is not None:
            check(state.sum, expected, start)
    check(now, after, start)
    check(ema.update(average, now).model, mean, start)


def _renamed(mesh: Any) -> Any:
    return init_device_mesh("cpu", (mesh.size(),), mesh_dim_names=("tp",))


def test_training_in_two_processes(tmp_path: Path) -> None:
    run(_measure, tmp_path, 2)


# -- calls ----------------------------------------------------------------------------------------


def test_a_class_pays_only_if_an_instance_is_gathered() -> None:
    class Plain(Module):
        weight: Parameter

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    plain = Plain(torch.eye(4))
    assert vars(Plain)["__call__"] is Plain.forward
    with ranks(2, names=("dp",)) as mesh:
        part: Any = dist.Plan(mesh, dp=dist.fsdp("*")).apply(plain)
        x = spread(torch.ones(2, 4), mesh, Shard(0))
        assert torch.equal(whole(part(x)), torch.ones(2, 4))
        Plain.forward = lambda self, x: 2 * x @ self.weight  # type: ignore[method-assign]  # a user's change
        assert torch.equal(whole(part(x)), 2 * torch.ones(2, 4))
        assert part.weight.placements == (Shard(0),)
        copy: Any = dist.Plan(mesh, dp=COPIES).apply(part)
        assert torch.equal(whole(copy(x)), 2 * torch.ones(2, 4))
    assert torch.equal(plain(torch.ones(4)), 2 * torch.ones(4))
