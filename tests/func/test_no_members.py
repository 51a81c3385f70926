"""Maps over no members, such as an empty batch of DP-SGD: empty stacks, and sums of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import parallax
from parallax import func, nn, tree

NET = nn.Sequential(
    nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
).initialize(0)
IMAGES, LABELS = torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64)
DIMS = (None, 0, 0)


def loss(model: Any, image: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(image[None]), label[None])


def with_aux(model: Any, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    return loss(model, image, label), model(image[None])[0]


EMPTY: dict[str, Callable[..., Any]] = {
    "per_sample_grad": func.per_sample_grad(loss),
    "its chunks": func.per_sample_grad(loss, chunk_size=4),
    "vmap of grad": func.vmap(func.grad(loss), DIMS),
    "other draws": func.per_sample_grad(loss, randomness="different"),
}
SUMS: dict[str, Callable[..., Any]] = {
    "clipped_grad": func.clipped_grad(loss, 1.0),
    "its chunks": func.clipped_grad(loss, 1.0, chunk_size=4),
    "no matrices": func.clipped_grad(loss, 1.0, exact=False),
    "gradient of a map": func.grad(lambda *args: func.vmap(loss, DIMS)(*args).sum()),
}


@pytest.mark.parametrize("run", EMPTY.values(), ids=EMPTY)
def test_gradients_of_no_samples_are_an_empty_stack(run: Any) -> None:
    shapes = [(0, *leaf.shape) for leaf in tree.leaves(NET)]
    assert [tuple(leaf.shape) for leaf in tree.leaves(run(NET, IMAGES, LABELS))] == shapes


@pytest.mark.parametrize("run", SUMS.values(), ids=SUMS)
def test_their_sum_is_zero(run: Any) -> None:
    assert tree.equal(run(NET, IMAGES, LABELS), tree.map(torch.zeros_like, NET))


def test_losses_norms_and_what_comes_beside_them() -> None:
    losses, outputs = func.vmap(with_aux, DIMS)(NET, IMAGES, LABELS)
    assert losses.shape == (0,) and outputs.shape == (0, 10)
    norms, outputs = func.per_sample_norms(with_aux, has_aux=True)(NET, IMAGES, LABELS)
    assert norms.shape == (0,) and norms.dtype == torch.float32 and outputs.shape == (0, 10)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled() -> None:
    run = parallax.compile(SUMS["clipped_grad"], backend="eager")
    assert tree.equal(run(NET, IMAGES, LABELS), tree.map(torch.zeros_like, NET))


def test_a_derivative_that_no_number_has_reaches_nothing_outside() -> None:
    def spread(w: Tensor, row: Tensor) -> Tensor:
        return (w * row).std() + (w * row).sum().sqrt()

    found = func.grad(lambda w: func.vmap(spread, (None, 0))(w, torch.zeros(0, 3)).sum())(
        torch.ones(3)
    )
    assert torch.equal(found, torch.zeros(3))
