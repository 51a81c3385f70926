"""Unpooling and fractional pooling are torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import nn as torch_nn

from parallax import func, nn, random
from tests.nn.parity import assert_parity, assert_same, both
from tests.nn.refusals import Net
from tests.nn.test_conv import images

FLOATS = [torch.float32, torch.float64, torch.bfloat16]


def pooled(dims: int, dtype: torch.dtype, side: int = 9, size: int = 2) -> tuple[Tensor, Tensor]:
    pool = getattr(torch_nn, f"MaxPool{dims}d")(size, 2, return_indices=True)
    x = images(dims)
    for dim in range(2, dims + 2):
        x = x.narrow(dim, 0, min(side, x.shape[dim]))
    most, indices = pool(x.to(dtype))
    return most, indices


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_unpooling(dims: int, dtype: torch.dtype) -> None:
    most, indices = pooled(dims, dtype)
    pair = both(f"MaxUnpool{dims}d", 2)
    size = list(images(dims).shape)
    assert_parity(*pair, most, indices, output_size=size)
    assert_parity(*pair, most, indices, output_size=size[2:])
    assert_parity(*pair, most[0], indices[0], output_size=size[2:])
    most, indices = pooled(dims, dtype, side=5, size=1)
    assert_parity(*both(f"MaxUnpool{dims}d", 1, 2), most, indices)


def test_inputs_that_do_not_fit_name_the_path() -> None:
    most, indices = pooled(2, torch.float32)
    net = Net(nn.MaxUnpool2d(2))
    text = "expected input of shape (C, H, W) or (N, C, H, W), got (3, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(f'Net.layer (MaxUnpool2d): {text}')}"):
        net(most[0, 0], indices[0, 0])
    text = "expected indices of shape (2, 4, 3, 3), got (2, 4, 3, 2)"
    with pytest.raises(ValueError, match=f"^{re.escape(f'Net.layer (MaxUnpool2d): {text}')}"):
        net(most, indices[..., :2])
    with pytest.raises(ValueError, match=r"^Net.layer \(MaxUnpool2d\): invalid output_size"):
        net(most, indices, output_size=[99, 99])
    with pytest.raises(TypeError, match=r"^Net.layer \(MaxUnpool2d\): indices must be a tensor"):
        net(most, None)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("batched", [True, False])
def test_fractional_pools_are_torchs_with_the_shares_that_the_key_gives(
    dims: int, batched: bool, dtype: torch.dtype
) -> None:
    x = images(dims).to(dtype)
    x = x if batched else x[0]
    shape = (*x.shape[:-dims], dims) if batched else (1, x.shape[0], dims)
    for arguments in ((2, 3), (2, None, 0.6), ((2, 1, 3)[:dims], (3, 2, 1)[:dims])):
        layer = getattr(nn, f"FractionalMaxPool{dims}d")(*arguments, return_indices=True)
        layer = layer.train(random.key(5))
        shares = random.uniform(random.clone(layer.rng), shape, dtype=dtype)
        theirs = getattr(torch_nn, f"FractionalMaxPool{dims}d")(
            *arguments, return_indices=True, _random_samples=shares
        )
        assert_same(layer(x), theirs(x))
        assert repr(layer) == repr(theirs)


def test_fractional_pools_draw_from_the_key_alone() -> None:
    x = torch.randn(1, 1, 40, 40)
    before = torch.random.get_rng_state()
    pool = nn.FractionalMaxPool2d(2, output_ratio=0.6)
    first = pool.train(random.key(1))(x)
    assert torch.equal(pool.train(random.key(1))(x), first)
    assert not torch.equal(pool.train(random.key(2))(x), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(RuntimeError, match=r"FractionalMaxPool2d\.rng: no random state was handed"):
        pool(x)
    grads = func.grad(lambda x: pool.train(random.key(1))(x).sum())(x)
    assert grads.sum() == first.numel()
    assert first.shape == F.max_pool2d(x, 2).new_empty(1, 1, 24, 24).shape


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("dims", [2, 3])
def test_fractional_pools_vmap_and_compile(dims: int) -> None:
    pool = getattr(nn, f"FractionalMaxPool{dims}d")(2, 3)
    x = images(dims)
    keys = random.split(random.key(0), 2)
    looped = [pool.train(random.clone(keys[i]))(x[i]) for i in range(2)]
    batched = func.vmap(lambda key, x: pool.train(key)(x))(keys, x)
    assert torch.equal(batched, torch.stack(looped))
    compiled = torch.compile(lambda pool, x: pool(x), fullgraph=True, backend="eager")
    assert torch.equal(compiled(pool.train(random.key(1)), x), pool.train(random.key(1))(x))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("MaxUnpool1d", (0,), ValueError, "(kernel_size=): must be at least 1, got 0"),
        ("MaxUnpool2d", (2, 2, -1), ValueError, "(padding=): must be at least 0, got -1"),
        ("MaxUnpool3d", ((2, 2),), ValueError, "(kernel_size=): expected an int or 3 of them"),
        ("FractionalMaxPool2d", (2,), ValueError, ": give either output_size or output_ratio"),
        ("FractionalMaxPool2d", (2, 2, 0.5), ValueError, ": give either output_size or output_rat"),
        (
            "FractionalMaxPool2d",
            (2, None, 1.5),
            ValueError,
            "(output_ratio=): must be betwe",
        ),
        ("FractionalMaxPool3d", (2, None, 1), TypeError, "(output_ratio=): expected a float or 3"),
        ("FractionalMaxPool3d", (2, 0), ValueError, "(output_size=): must be at least 1, got 0"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(*arguments)


def test_an_image_that_is_too_small_names_the_path() -> None:
    text = "Net.layer (FractionalMaxPool2d): expected input of shape (C, H, W) or (N, C, H, W)"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        Net(nn.FractionalMaxPool2d(3, 2)).train(0)(torch.ones(2, 2, 2))
