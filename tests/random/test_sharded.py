"""Draws beside distributed tensors: the numbers of one process, on any mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

import parallax
from parallax import func, nn, random, tree
from tests.compiling import make_compiled
from tests.meshes import alone, ranks, spread, whole

PLACES = [
    pytest.param((4,), (Shard(0),), id="rows"),
    pytest.param((4,), (Shard(1),), id="columns"),
    pytest.param((2, 2), (Shard(1), Shard(0)), id="both"),
]
key = random.key
DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda t: random.normal(key(0), (6, 8, 4), mean=t, std=t.exp()),
    "normal, one mean": lambda t: random.normal(key(0), (3, 6, 8, 4), mean=t),
    "uniform": lambda t: random.uniform(key(0), (6, 8, 4), low=t, high=t.exp() + 1),
    "uniform, one end": lambda t: random.uniform(key(0), (6, 8, 4), high=t.exp() + 1),
    "bernoulli": lambda t: random.bernoulli(key(0), (6, 8, 4), t.sigmoid()),
    "bernoulli, double": lambda t: random.bernoulli(key(0), (6, 8, 4), t.double().sigmoid()),
    "categorical": lambda t: random.categorical(key(0), t, (3,)),
    "permutation": lambda t: random.permutation(key(0), t, dim=1),
    "choice": lambda t: random.choice(key(0), t, (3,), dim=2),
    "choice by p": lambda t: random.choice(key(0), 8, (3,), p=t[0, :, 0].softmax(0)),
}
LAYERS: dict[str, Callable[[], Any]] = {
    "Dropout": lambda: nn.Dropout(0.4),
    "Dropout1d": lambda: nn.Dropout1d(0.4),
    "AlphaDropout": lambda: nn.AlphaDropout(0.4),
    "RReLU": nn.RReLU,
}


def operand() -> Tensor:
    return torch.arange(192.0).view(6, 8, 4).sin()


def check(draw: Callable[[Tensor], Any], sizes: tuple[int, ...], places: tuple[Any, ...]) -> None:
    expected = draw(operand())
    with ranks(*sizes) as mesh:
        found = draw(spread(operand(), mesh, *places))
        assert found.dtype == expected.dtype
        torch.testing.assert_close(whole(found), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize(("sizes", "places"), PLACES)
def test_draws(draw: Any, sizes: tuple[int, ...], places: tuple[Any, ...]) -> None:
    check(draw, sizes, places)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize(("sizes", "places"), PLACES[1:])
def test_layers(layer: Any, sizes: tuple[int, ...], places: tuple[Any, ...]) -> None:
    def run(x: Tensor) -> Any:
        return layer().train(key(3))(x)

    def slopes(x: Tensor) -> Any:
        return func.grad(lambda x: (run(x) * x.cos()).sum())(x)

    def slopes_of_slopes(x: Tensor) -> Any:
        return func.grad(lambda x: (slopes(x) * x.exp()).sum())(x)

    check(run, sizes, places)
    check(slopes, sizes, places)
    check(slopes_of_slopes, sizes, places)


def dropped(x: Tensor) -> Any:
    return nn.Dropout(0.4).train(key(3))(x)


TRANSFORMS: dict[str, Callable[[Tensor], Any]] = {
    "torch.func.grad": torch.func.grad(lambda x: dropped(x).square().sum()),
    "vmap": lambda x: func.vmap(dropped, randomness="same")(torch.stack([x, 2 * x])),
    "jacrev": func.jacrev(lambda x: dropped(x).square().sum((0, 1))),
}


@pytest.mark.parametrize("draw", TRANSFORMS.values(), ids=TRANSFORMS)
def test_draws_in_transforms(draw: Any) -> None:
    check(draw, (4,), (Shard(0),))


def slopes(x: Tensor) -> Any:
    return func.grad(lambda x: (dropped(x) * x.cos()).sum())(x)


COMPILED: dict[str, Callable[[Tensor], Any]] = {
    "draw": dropped,
    "gradient": slopes,
    "second derivative": func.grad(lambda x: (slopes(x) * x.exp()).sum()),
    "vmap": lambda x: func.vmap(func.grad(lambda row: dropped(row).square().sum()))(x),
}


@pytest.mark.parametrize("draw", COMPILED.values(), ids=COMPILED)
def test_draws_in_compiled_code(draw: Any) -> None:
    expected, plain = draw(operand()), make_compiled(draw, backend="aot_eager")(operand())
    torch.testing.assert_close(plain, expected)
    with alone() as mesh:
        x = spread(operand(), mesh, Shard(0))
        found = parallax.compile(draw, backend="aot_eager")(x)
        torch.testing.assert_close(whole(found), expected)


def test_attention() -> None:
    def attend(x: Tensor) -> Any:
        return layer.train(key(3))(x, x, x)[0]

    layer = nn.MultiheadAttention(4, 2, dropout=0.4, batch_first=True).initialize(0)
    even = operand().view(8, 6, 4)  # torch merges dimensions of no other
    expected = attend(even)
    with ranks(4) as mesh:
        layer = tree.map(lambda leaf: spread(leaf, mesh, Replicate()), layer)
        found = attend(spread(even, mesh, Shard(0)))
        torch.testing.assert_close(whole(found), expected)


def test_a_key_is_used_up_by_a_draw_beside_a_distributed_tensor() -> None:
    with ranks(4) as mesh:
        x = spread(operand(), mesh, Shard(0))
        layer = nn.Dropout(0.5).train(key(0))
        layer(x)
        with pytest.raises(random.KeyReusedError):
            layer(x)
