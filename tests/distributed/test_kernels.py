"""Kernels for which torch's rules of distributed tensors are wrong or missing: one process's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode

from parallax import distributed as dist
from parallax import func, nn, random, tree
from tests.meshes import ranks, spread, whole


def numbers(*shape: int) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).view(shape).sin() * 2


def check(function: Callable[..., Tensor], *given: Tensor, dim: int = 0) -> None:
    """The value and the gradient of a function of one process, of tensors that are cut."""
    loss = func.grad_and_value(function)
    grad, value = loss(*given)
    with ranks(2, names=("dp",)) as mesh:
        placed = [spread(one, mesh, Shard(dim)) for one in given]
        dist.Plan(mesh, dp=dist.replicate())
        found, seen = loss(*placed)
        assert found.placements == placed[0].placements
        torch.testing.assert_close(whole(seen), value)
        torch.testing.assert_close(whole(found), grad)


# -- cross-entropy: means of which not every target is a part --------------------------------------

TARGET = torch.tensor([[0, -100, 2], [-100, -100, -100], [1, 1, 2], [0, 2, 1]])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": F.cross_entropy,
    "sum": partial(F.cross_entropy, reduction="sum"),
    "each": lambda x, y: F.cross_entropy(x, y, reduction="none").square().mean(),
    "smooth": partial(F.cross_entropy, label_smoothing=0.1),
    "weighted": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 4.0])),
    "likelihood": nn.NLLLoss(torch.tensor([1.0, 2.0, 4.0])),
}


@pytest.mark.parametrize("how", LOSSES)
def test_targets_that_are_ignored(how: str) -> None:
    check(LOSSES[how], numbers(12, 3), TARGET.flatten())
    check(lambda x, y: LOSSES[how](x.transpose(1, 2), y), numbers(4, 3, 3), TARGET)


def test_a_part_without_a_target() -> None:
    check(F.cross_entropy, numbers(4, 3), torch.tensor([-100, -100, 1, 0]))


def test_rows_that_do_not_divide() -> None:
    check(F.cross_entropy, numbers(5, 3), torch.tensor([-100, 2, 1, 0, 0]))


def test_positions_that_are_cut_and_flattened() -> None:
    """Torch takes what is flattened for cut in strides."""
    scores = numbers(4, 4, 3)
    expected = func.grad_and_value(flattened)(scores, TARGETS)
    with ranks(2, 2) as mesh:
        for cuts in ((Replicate(), Shard(1)), (Shard(0), Shard(1))):
            placed = [spread(one, mesh, *cuts) for one in (scores, TARGETS)]
            with CommDebugMode() as counted:
                found = func.grad_and_value(flattened)(*placed)
            assert set(map(str, counted.get_comm_counts())) == {"c10d_functional.all_reduce"}
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(whole(one), other)


TARGETS = torch.tensor([[0, -100, 2, 1], [-100] * 4, [1, 1, 2, 0], [0, 2, 1, -100]])


def flattened(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x.flatten(0, 1), y.flatten())


def test_scores_that_are_cut_by_class() -> None:
    scores, target = numbers(4, 6), torch.tensor([5, -100, 1, 0])
    expected = func.grad_and_value(F.cross_entropy)(scores, target)
    with ranks(2) as mesh:
        placed = spread(scores, mesh, Shard(1)), spread(target, mesh, Shard(0))
        for one, other in zip(func.grad_and_value(F.cross_entropy)(*placed), expected, strict=True):
            torch.testing.assert_close(whole(one), other)


# -- whether any entry is not zero -----------------------------------------------------------------


@pytest.mark.parametrize("dims", [(), (0,), (1,), ((0, 1),)], ids=str)
def test_any_is_put_together_before_it_is_a_number(dims: Any) -> None:
    value = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    expected = value.any(*dims)
    with ranks(2) as mesh:
        for x in (value, value > 0):
            found: Any = spread(x, mesh, Shard(0)).any(*dims)
            assert found.dtype is torch.bool
            assert torch.equal(whole(found.float() + 1), expected.float() + 1)
        assert spread(value.to(torch.uint8), mesh, Shard(0)).any().dtype is torch.uint8


# -- kernels without a rule ------------------------------------------------------------------------

ENTRIES: dict[str, Any] = {
    "ELU": nn.ELU(), "Hardshrink": nn.Hardshrink(), "Hardsigmoid": nn.Hardsigmoid(),
    "Hardswish": nn.Hardswish(), "LeakyReLU": nn.LeakyReLU(), "LogSigmoid": nn.LogSigmoid(),
    "Mish": nn.Mish(), "PReLU": lambda x: F.prelu(x, torch.full_like(x.sum(), 0.2).view(1)),
    "ReLU6": nn.ReLU6(), "Softplus": nn.Softplus(), "Softshrink": nn.Softshrink(),
}  # fmt: skip
IMAGES: dict[str, Any] = {
    "AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d(2), "AvgPool2d": nn.AvgPool2d(2),
    "LocalResponseNorm": nn.LocalResponseNorm(2), "LPPool2d": nn.LPPool2d(2, 2),
    "ReflectionPad2d": nn.ReflectionPad2d(1), "ReplicationPad2d": nn.ReplicationPad2d(1),
}  # fmt: skip
VOLUMES: dict[str, Any] = {
    "AdaptiveAvgPool3d": nn.AdaptiveAvgPool3d(2), "AdaptiveMaxPool3d": nn.AdaptiveMaxPool3d(2),
    "AvgPool3d": nn.AvgPool3d(2), "MaxPool3d": nn.MaxPool3d(2),
    "ReflectionPad3d": nn.ReflectionPad3d(1), "ReplicationPad3d": nn.ReplicationPad3d(1),
}  # fmt: skip
LINES: dict[str, Any] = {
    "ReflectionPad1d": nn.ReflectionPad1d(1), "ReplicationPad1d": nn.ReplicationPad1d(1),
}  # fmt: skip


def squared(layer: Any, x: Tensor) -> Tensor:
    return layer(x).square().mean()  # type: ignore[no-any-return]  # a Tensor


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("layer", ENTRIES)
def test_activations(layer: str, dim: int) -> None:
    check(partial(squared, ENTRIES[layer]), numbers(4, 4), dim=dim)


@pytest.mark.parametrize("dim", [0, 1, 3])
@pytest.mark.parametrize("layer", IMAGES)
def test_images_by_example_channel_and_column(layer: str, dim: int) -> None:
    check(partial(squared, IMAGES[layer]), numbers(2, 4, 4, 4), dim=dim)


@pytest.mark.parametrize("layer", VOLUMES | LINES)
def test_volumes_and_lines(layer: str) -> None:
    shape = (2, 2, 4, 4, 4) if layer in VOLUMES else (2, 2, 4)
    check(partial(squared, (VOLUMES | LINES)[layer]), numbers(*shape))


# -- recurrent layers, of which torch's kernels take no distributed tensors ------------------------


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, nn.LSTM], ids=lambda layer: layer.__name__)
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "steps first"])
def test_recurrent_layers(layer: Any, batch_first: bool) -> None:
    model = layer(3, 4, num_layers=2, batch_first=batch_first, bidirectional=True, dropout=0.5)
    model = model.initialize(0)
    x, dim = numbers(4, 5, 3) if batch_first else numbers(5, 4, 3), 1 - batch_first

    def loss(model: Any, x: Tensor) -> Tensor:
        return model(x)[0].square().mean()  # type: ignore[no-any-return]  # a Tensor

    grads, value = func.grad_and_value(loss)(model.train(random.key(0)), x)
    with ranks(2, names=("dp",)) as mesh:
        plan = dist.Plan(mesh, dp=dist.replicate())
        placed = plan.apply(model).train(random.key(0))
        found, seen = func.grad_and_value(loss)(placed, spread(x, mesh, Shard(dim)))
        torch.testing.assert_close(whole(seen), value)
        for one, other in zip(tree.leaves(found), tree.leaves(grads), strict=True):
            torch.testing.assert_close(whole(one), other)
