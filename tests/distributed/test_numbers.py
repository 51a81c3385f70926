"""A number that decides is the same in all processes, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Shard

from parallax import Module, Parameter, nn, optim, tree
from parallax import distributed as dist
from tests.meshes import alone, ranks, spread

SGD = optim.SGD(lr=1.0)


class Rows(Module):
    weight: Parameter


def rows(last: float = 1.0) -> Any:
    """A module of which the second process holds the last number."""
    weight = torch.ones(4, 4)
    weight[3, 3] = last
    return Rows(weight)


@pytest.fixture
def plan() -> Any:
    with ranks(2, names=("dp",)) as mesh:
        yield dist.Plan(mesh, dp=dist.fsdp("*"))


@pytest.mark.parametrize("read", [Tensor.item, float, bool])
@pytest.mark.parametrize("reduced", [Tensor.sum, Tensor.mean, Tensor.max])
def test_a_number_in_parts_is_not_read(
    plan: Any, read: Callable[[Tensor], Any], reduced: Callable[[Tensor], Tensor]
) -> None:
    weight = plan.apply(rows(3.0)).weight
    with pytest.raises(RuntimeError, match=r"Partial on dp\).*plan\.gather\(loss\)\.item\(\)"):
        read(reduced(weight))
    whole = plan.gather(reduced(weight))
    assert read(whole) == read(reduced(rows(3.0).weight))


def test_a_users_own_tensor_is_read_as_torch_reads_it() -> None:
    with alone(2, names=("mine",)) as mesh:
        term = DTensor.from_local(torch.tensor(2.0), mesh, [Partial()], run_check=False)
        assert term.item() == 2
        dist.Plan(mesh, mine=dist.replicate())
        with pytest.raises(RuntimeError, match="in parts"):
            term.item()


def test_trees_are_compared_in_all_parts(plan: Any) -> None:
    one, other = plan.apply(rows()), plan.apply(rows(2.0))
    assert tree.equal(one, one) and tree.allclose(one, one)
    assert not tree.equal(one, other) and not tree.allclose(one, other)
    assert not tree.diff(one, one)
    assert str(tree.diff(one, other)) == str(tree.diff(rows(), rows(2.0)))


@pytest.mark.parametrize("p", [1, 2, 3, float("inf")])
def test_norms_are_numbers(plan: Any, p: float) -> None:
    one, other = rows(2.0), rows(3.0)
    first, second = plan.apply(one), plan.apply(other)
    assert tree.norm(second, p).item() == pytest.approx(tree.norm(other, p).item())
    assert tree.vdot(first, second).item() == 21
    clipped, norm = optim.clip_grad_norm(second, 1.0, p)
    expected = optim.clip_grad_norm(other, 1.0, p)
    assert norm.item() == pytest.approx(expected[1].item())
    assert torch.allclose(plan.gather(clipped).weight, expected[0].weight)


def test_an_optimizer_that_reads_norms_of_leaves(plan: Any) -> None:
    opt = optim.Adafactor(lr=0.1)
    model, grads = rows(2.0), rows(3.0)
    expected, _ = opt.step(model, grads, opt.init(model))
    start = plan.apply(model)
    found, _ = opt.step(start, plan.apply(grads), opt.init(start))
    assert found.weight.placements == start.weight.placements
    torch.testing.assert_close(plan.gather(found).weight, expected.weight)


@pytest.mark.parametrize("last", [float("nan"), 1.0])
def test_a_step_is_left_out_by_all(plan: Any, last: float) -> None:
    expected = torch.zeros(4, 4) if last == 1.0 else torch.ones(4, 4)
    model, grads = plan.apply(rows()), plan.apply(rows(last))
    skip, scaler = optim.SkipNonfinite(SGD), optim.LossScaler()
    found, state = skip.step(model, grads, skip.init(model))
    assert torch.equal(plan.gather(found).weight, expected)
    assert int(state.total) == (last != 1.0)
    scaled = tree.scale(grads, 2.0**16)
    found, *_ = scaler.step(SGD, model, scaled, SGD.init(model), scaler.init())
    assert torch.equal(plan.gather(found).weight, expected)


def test_what_is_wrong_is_told_by_all(plan: Any) -> None:
    model = plan.apply(rows(float("inf")))
    with pytest.raises(FloatingPointError, match="gradient of weight has infinite entries"):
        optim.clip_grad_norm(model, 1.0, error_if_nonfinite=True)
    x = spread(torch.arange(4.0), plan.mesh, Shard(0))
    with pytest.raises(ValueError, match="var must not be negative, and 1 of 4 variances are"):
        nn.GaussianNLLLoss()(x, x, 2.5 - x)
