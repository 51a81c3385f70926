"""Derivatives of trees whose leaves are distributed: those of one process, placed as the leaves."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

import parallax
from parallax import Module, Parameter, func, nn, optim, tree
from tests.meshes import alone, ranks, run, spread, whole


class Net(Module):
    up: nn.Linear
    down: nn.Linear
    unused: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh())


def net() -> Any:
    return Net(nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(3, 2)).initialize(0)


def batch() -> tuple[Tensor, Tensor]:
    return torch.arange(48.0).view(8, 6).sin(), torch.arange(32.0).view(8, 4).cos()


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    return (model(x) - y).square().mean()  # type: ignore[no-any-return]  # a Tensor


TENSOR_PARALLEL = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
"""Where not all of a leaf is on each rank; the rest is."""


def replicated(path: str) -> tuple[Any, ...]:
    return (Replicate(),)


def sharded(path: str) -> tuple[Any, ...]:
    return (Shard(0),)


def tensor_parallel(path: str) -> tuple[Any, ...]:
    return (TENSOR_PARALLEL.get(path, Replicate()),)


def both(path: str) -> tuple[Any, ...]:
    return Replicate(), TENSOR_PARALLEL.get(path, Replicate())


PLANS = [
    pytest.param(plan, sizes, id=plan.__name__)
    for plan, sizes in [
        (replicated, (4,)), (sharded, (4,)), (tensor_parallel, (4,)), (both, (2, 2)),
    ]
]  # fmt: skip


def placed(model: Any, mesh: Any, plan: Callable[[str], tuple[Any, ...]]) -> Any:
    return tree.map_with_path(lambda path, leaf: spread(leaf, mesh, *plan(path)), model)


def check(found: Any, expected: Any, like: Any) -> None:
    """The numbers of one process, in the placements of a model."""
    for one, other, leaf in zip(*map(tree.leaves, (found, expected, like)), strict=True):
        assert one.placements == leaf.placements
        torch.testing.assert_close(whole(one), other, rtol=0, atol=1e-6)


def by_backward(model: Any, x: Tensor, y: Tensor) -> Any:
    model = model.reset(0)
    (loss(model, x, y) + 0 * model.unused.weight.sum() + 0 * model.unused.bias.sum()).backward()
    return model.grad()


def by_vjp(model: Any, x: Tensor, y: Tensor) -> Any:
    out, pull = func.vjp(lambda model: loss(model, x, y), model)
    return pull(torch.ones_like(out))[0]


def of_gradient(model: Any, x: Tensor, y: Tensor) -> Any:
    def length(model: Any) -> Tensor:
        grads = tree.leaves(func.grad(loss)(model, x, y))
        return torch.stack([grad.square().sum() for grad in grads[:4]]).sum()

    return func.grad(length)(model)


HOW = {
    "grad": func.grad(loss), "backward": by_backward, "vjp": by_vjp, "second order": of_gradient,
}  # fmt: skip


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("rows", [Shard(0), Replicate()], ids=str)
@pytest.mark.parametrize(("plan", "sizes"), PLANS)
def test_gradients_are_placed_as_their_leaves(
    plan: Any, sizes: tuple[int, ...], rows: Any, how: Any
) -> None:
    model = net()
    expected = how(model, *batch())
    with ranks(*sizes) as mesh:
        how_rows = (rows, Replicate())[: len(sizes)]
        model = placed(model, mesh, plan)
        x, y = (spread(t, mesh, *how_rows) for t in batch())
        check(how(model, x, y), expected, model)


def steps(model: Any, x: Tensor, y: Tensor, opt: Any, donate: bool) -> tuple[Any, Any, Any]:
    """A model after some steps, its average, and the state of its optimizer."""
    average, state = tree.map(torch.clone, model), opt.init(model)
    for _ in range(3):
        grads = func.grad(loss)(model, x, y)
        model, state = opt.step(model, grads, state, donate=donate)
        average = average.update(lambda old, new: 0.9 * old + 0.1 * new, model)
    return model, average, state


OPTIMIZERS = [
    optim.AdamW(lr=0.1),
    optim.chain(optim.ClipNorm(0.1), optim.SGD(lr=0.1, momentum=0.9)),
    optim.Accumulate(optim.Adam(lr=0.1), 2),
]


def _steps(rank: int, folder: str) -> None:
    mesh = init_device_mesh("cpu", (2,))
    x, y = (spread(t, mesh, Shard(0)) for t in batch())
    for opt, plan in product(OPTIMIZERS, (replicated, sharded, tensor_parallel)):
        expected = steps(net(), *batch(), opt, False)
        for donate in (False, True):
            model = placed(net(), mesh, plan)
            found = steps(tree.map(torch.clone, model), x, y, opt, donate)
            check(found[0], expected[0], model)
            check(found[1], expected[1], model)
            held = {leaf.shape: leaf.placements for leaf in tree.leaves(model)}
            for leaf in tree.leaves(found[2]):
                if isinstance(leaf, Tensor) and leaf.shape in held:
                    assert leaf.placements == held[leaf.shape]  # type: ignore[attr-defined]  # a DTensor
    _compiled_step(mesh, x, y)


def _compiled_step(mesh: Any, x: Tensor, y: Tensor) -> None:
    opt = optim.AdamW(lr=0.1)

    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> Any:
        grads = func.grad(loss)(model, x, y)
        return grads, *opt.step(model, grads, state)

    model = placed(net(), mesh, sharded)
    found = parallax.compile(step, backend="eager")(model, opt.init(model), x, y)
    expected = step(net(), opt.init(net()), *batch())
    check(found[0], expected[0], model)
    check(found[1], expected[1], model)


def test_steps_keep_placements(tmp_path: Path) -> None:
    run(_steps, tmp_path, 2)


# -- losses ---------------------------------------------------------------------------------------

LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse_loss": F.mse_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "binary_cross_entropy": lambda p, t, **how: F.binary_cross_entropy(
        p.sigmoid(), t.sigmoid(), **how
    ),
    "soft_margin_loss": lambda p, t, **how: F.soft_margin_loss(p, t.sign(), **how),
}


class Point(Module):
    at: Parameter


def slopes(how: str, of: Callable[..., Tensor], p: Tensor, t: Tensor) -> Tensor:
    """The gradient of a loss, times two."""

    def twice(p: Tensor) -> Tensor:
        return 2 * of(p, t)

    if how == "tape":
        return func.grad(twice)(p)
    if how == "backward":
        point = Point(p).reset(0)
        twice(point.at).backward()
        return point.grad().at
    if how == "vjp":
        out, pull = func.vjp(twice, p)
        return pull(torch.ones_like(out))[0]
    with torch.inference_mode():
        return func.grad(twice)(p)


@pytest.mark.parametrize("how", ["tape", "backward", "vjp", "functorch"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_torch_scales_where_it_is_sharded_is_right(name: str, how: str) -> None:
    of, (p, t) = LOSSES[name], (torch.arange(8.0).sin(), torch.arange(8.0).cos())
    expected = func.grad(lambda p: 2 * of(p, t))(p)
    with ranks(4) as mesh:
        whole_p, whole_t = (spread(x, mesh, Replicate()) for x in (p, t))
        cut_p, cut_t = (spread(x, mesh, Shard(0)) for x in (p, t))
        for one, other in product((whole_p, cut_p), (whole_t, cut_t)):
            found = slopes(how, of, one, other)
            torch.testing.assert_close(whole(found), expected)
        for reduction in ("none", "sum"):
            found = slopes(how, lambda p, t: of(p, t, reduction=reduction).sum() / 8, cut_p, cut_t)  # noqa: B023  # called here
            torch.testing.assert_close(whole(found), expected)


def test_a_loss_that_torch_scales_where_it_is_sharded_is_right_in_compiled_code() -> None:
    with alone(4) as mesh:
        p, t = (spread(x, mesh, Shard(0)) for x in (torch.ones(8), torch.zeros(8)))
        found: Any = parallax.compile(func.grad(F.mse_loss), backend="eager")(p, t)
        # No other process is there: what is checked is this one's part.
        assert torch.equal(found.to_local(), torch.full((2,), 0.25))
