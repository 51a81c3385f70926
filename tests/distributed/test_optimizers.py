"""Optimizers and derivatives of models whose leaves are spread differently, against one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

import parallax
from parallax import Module, func, nn, optim, tree
from parallax import distributed as dist
from tests.meshes import alone, ranks, spread, whole


class Net(Module):
    """Its first layer is cut, and its last one is not."""

    first: nn.Linear
    last: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).tanh())
        return y


NETS: list[Any] = [
    tree.to(Net(nn.Linear(8, 8), nn.Linear(8, 4)).initialize(seed), dtype=torch.float64)
    for seed in range(3)
]


def net() -> Any:
    return NETS[0]


def size(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()  # type: ignore[no-any-return]  # a Tensor


def rows(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel()), dtype=torch.float64).view(shape).cos()


def check(found: Any, expected: Any) -> None:
    for one, other in zip(*map(tree.leaves, (found, expected)), strict=True):
        torch.testing.assert_close(whole(one), whole(other), rtol=0, atol=1e-12)


@contextmanager
def four() -> Iterator[Any]:
    """A plan for four ranks. What is made within it is made by each of them."""
    with ranks(4, names=("dp",)) as mesh:
        yield dist.Plan(mesh, dp=dist.fsdp("first"))


MATRICES: Any = {lambda path, leaf: leaf.ndim == 2: optim.Muon(lr=0.1)}
OPTIMIZERS: dict[str, Any] = {
    "lamb": optim.LAMB(lr=0.1),
    "muon": optim.Split(MATRICES, rest=optim.Lion(lr=0.1)),
    "noise": optim.chain(optim.AddNoise(0.1, 0), optim.Lion(lr=0.1)),
    "skip": optim.SkipNonfinite(optim.Lion(lr=0.1)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_that_of_one_process(name: str) -> None:
    opt, model = OPTIMIZERS[name], net()
    # Of other strides torch multiplies halves in another order.
    grads = tree.map(Tensor.contiguous, func.grad(size)(model, rows(16, 8)))
    expected = opt.step(model, grads, opt.init(model))
    with four() as plan:
        part = plan.apply(model)
        found = opt.step(part, plan.apply(grads), opt.init(part))
        check(found, expected)
        assert found[0].first.weight.placements == part.first.weight.placements


@pytest.mark.parametrize("last", [1.0, float("nan")])
def test_finite_is_told_of_leaves_that_are_spread_differently(last: float) -> None:
    scaler, opt, model = optim.LossScaler(), optim.Lion(lr=0.1), net()
    grads = tree.select(net(), "last.bias").apply(lambda leaf: leaf * last)
    expected = scaler.step(opt, model, grads, opt.init(model), scaler.init())
    with four() as plan:
        part, cut = plan.apply(model), plan.apply(grads)
        check(scaler.step(opt, part, cut, opt.init(part), scaler.init()), expected)
        assert tree.equal(part, part) and tree.equal(part, cut) is (last == 1)


def test_finite_is_told_in_compiled_code() -> None:
    opt = optim.SkipNonfinite(optim.SGD(lr=0.1))
    with alone(1, names=("dp",)) as mesh:
        part = tree.map(lambda leaf: spread(leaf, mesh, Shard(0)), net())
        grads = tree.select(part, "last.*").apply(lambda leaf: leaf / 0)
        step = parallax.compile(opt.step, backend="aot_eager")
        found, state = step(part, grads, opt.init(part))
        check(found, net())
        assert int(state.total) == 1


def test_an_ensemble_of_parts_that_are_gathered() -> None:
    each: Callable[..., Any] = func.vmap(func.grad(size))
    twice = func.vmap(func.vmap(func.grad(size), in_dims=(None, 0)))
    x, pairs = rows(3, 4, 8), rows(3, 2, 4, 8)
    expected = [fn(tree.stack(NETS), data) for fn, data in ((each, x), (twice, pairs))]
    with four() as plan:
        members = tree.stack([plan.apply(one) for one in NETS])
        found = each(members, spread(x, plan.mesh, Replicate()))
        assert found.first.weight.placements == (Shard(1),)
        check([found, twice(members, spread(pairs, plan.mesh, Replicate()))], expected)


@pytest.mark.parametrize("shape", [(4, 8), (4, 2, 8)])
def test_per_sample_gradients_of_gathered_parts(shape: tuple[int, ...]) -> None:
    model, x = net(), rows(*shape)
    clipped = func.clipped_grad(size, 0.1, in_dims=(None, 0))
    per_sample = func.per_sample_grad(size, in_dims=(None, 0))
    expected = [fn(model, x) for fn in (clipped, per_sample)]
    with four() as plan:
        part, cut = plan.apply(model), spread(x, plan.mesh, Shard(0))
        check([fn(part, cut) for fn in (clipped, per_sample)], expected)


def test_second_derivatives_of_causal_attention() -> None:
    q, along = rows(4, 2, 3, 8), rows(8, 3, 2, 4).view(4, 2, 3, 8)

    def product(q: Tensor, along: Tensor) -> Any:
        def mean(q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q, is_causal=True).square().mean()

        return func.hvp(mean, (q,), (along,))[-1][0]

    expected = product(q, along)
    with ranks(4, names=("dp",)) as mesh:
        found = product(spread(q, mesh, Shard(0)), spread(along, mesh, Shard(0)))
        torch.testing.assert_close(whole(found), expected)


def test_a_vector_times_a_matrix_is_a_vector() -> None:
    with alone(1, names=("dp",)) as mesh:
        vector, matrix = (spread(t, mesh, Replicate()) for t in (rows(8), rows(4, 8)))
        products: list[Any] = [F.linear(vector, matrix), vector @ matrix.t()]
        for found in products:
            assert found.shape == found.to_local().shape == (4,)
        row = spread(rows(1, 3, 1), mesh, Replicate())
        assert row.squeeze_(0).shape == (3, 1) and row.squeeze_().shape == (3,)
