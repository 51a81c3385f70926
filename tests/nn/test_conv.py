"""Convolutions are torch's, whatever the padding, and say what does not fit them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, nn
from tests.nn.parity import assert_parity, assert_starts_alike, both

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]
SPATIAL = (7, 6, 5)


def images(dims: int, channels: int = 4, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(dims)
    return torch.randn(2, channels, *SPATIAL[:dims], generator=generator, dtype=dtype)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"stride": 2, "padding": 1, "bias": False},
        {"dilation": 2, "padding": 2, "groups": 2},
        {"groups": 4, "padding": "same"},
        {"padding": "valid", "stride": 2},
        {"padding": "same", "dilation": 2, "padding_mode": "circular"},
        {"padding": 2, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate", "stride": 3},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "valid", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_every_argument(dims: int, keywords: dict[str, Any]) -> None:
    assert_parity(*both(f"Conv{dims}d", 4, 8, 3, **keywords), images(dims))


def test_one_size_for_each_dimension_and_even_kernels() -> None:
    x = images(3)
    three = both("Conv3d", 4, 2, (3, 2, 1), (1, 2, 3), (2, 0, 1), (1, 2, 1))
    assert_parity(*three, x)
    mode = {"padding": "same", "padding_mode": "reflect"}
    assert_parity(*both("Conv2d", 4, 2, (2, 4), **mode), images(2))
    around = {"padding": (2, 1, 3), "padding_mode": "circular"}
    assert_parity(*both("Conv3d", 4, 2, (3, 2, 1), **around), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dims: int, dtype: torch.dtype) -> None:
    assert_parity(*both(f"Conv{dims}d", 4, 2, 3, dtype=dtype), images(dims, dtype=dtype))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_odd_shapes(dims: int) -> None:
    ours, theirs = both(f"Conv{dims}d", 4, 2, 1, padding=1)
    x = images(dims)
    for odd in (x[0], x[:0], x[..., :1], x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_parity(ours, theirs, odd)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_no_channels() -> None:
    assert_parity(*both("Conv1d", 0, 2, 1, bias=False), torch.ones(2, 0, 5))


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d"])
def test_it_starts_where_torchs_does(name: str) -> None:
    assert_starts_alike(name, 4, 6, 3, groups=2, padding_mode="circular")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3, 4, 3, 1, 0, 1, 2), ValueError, "Conv2d(in_channels=): must be divisible by groups=2"),
        ((4, 3, 3, 1, 0, 1, 2), ValueError, "Conv2d(out_channels=): must be divisible by groups=2"),
        ((3, 4, 3, 1, 0, 1, 0), ValueError, "Conv2d(groups=): must be at least 1, got 0"),
        ((3.0, 4, 3), TypeError, "Conv2d(in_channels=): expected an int, got 3.0"),
        ((-3, 4, 3), ValueError, "Conv2d(in_channels=): must be at least 0, got -3"),
        ((3, 4, 0), ValueError, "Conv2d(kernel_size=): must be at least 1, got 0"),
        ((3, 4, (3, 3, 3)), ValueError, "Conv2d(kernel_size=): expected an int or 2 of them"),
        ((3, 4, "3"), TypeError, "Conv2d(kernel_size=): expected an int or 2 of them, got '3'"),
        ((3, 4, 3, 0), ValueError, "Conv2d(stride=): must be at least 1, got 0"),
        ((3, 4, 3, 1, -1), ValueError, "Conv2d(padding=): must be at least 0, got -1"),
        ((3, 4, 3, 1, "sane"), ValueError, "Conv2d(padding=): expected one of 'same', 'valid'"),
        ((3, 4, 3, 2, "same"), ValueError, "Conv2d(padding='same'): the stride must be 1, got 2"),
        ((3, 4, 3, 1, 0, 0), ValueError, "Conv2d(dilation=): must be at least 1, got 0"),
        ((3, 4, 3, 1, 0, 1, 1, True, "mirror"), ValueError, "Conv2d(padding_mode=): expected one"),
    ],
)
def test_bad_arguments_fail_at_construction(
    arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        nn.Conv2d(*arguments)
    assert str(caught.value).startswith(text)


class Net(Module):
    first: nn.Conv2d

    def forward(self, x: Any) -> Any:
        return self.first(x)


@pytest.mark.parametrize(
    ("keywords", "given", "expected"),
    [
        ({}, (2, 3, 9, 9), "(4, H, W) or (N, 4, H, W) with H >= 3, W >= 3"),
        ({}, (4, 9), "(4, H, W) or (N, 4, H, W) with H >= 3, W >= 3"),
        ({}, (1, 1, 4, 9, 9), "(4, H, W) or (N, 4, H, W) with H >= 3, W >= 3"),
        ({}, (4, 9, 2), "(4, H, W) or (N, 4, H, W) with H >= 3, W >= 3"),
        ({"padding": 1, "dilation": (2, 1)}, (4, 2, 9), "(4, H, W) or (N, 4, H, W) with H >= 3"),
        (
            {"padding": 4, "padding_mode": "reflect"},
            (4, 4, 9),
            "(4, H, W) or (N, 4, H, W) with H >= 5, W >= 5",
        ),
        (
            {"padding": 4, "padding_mode": "circular"},
            (4, 3, 9),
            "(4, H, W) or (N, 4, H, W) with H >= 4, W >= 4",
        ),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    keywords: dict[str, Any], given: tuple[int, ...], expected: str
) -> None:
    net = Net(nn.Conv2d(4, 2, 3, **keywords)).initialize(0)
    text = f"Net.first (Conv2d): expected input of shape {expected}, got {given}"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        net(torch.ones(given))


def test_what_is_no_tensor_or_of_another_dtype() -> None:
    net = Net(nn.Conv2d(4, 2, 3)).initialize(0)
    with pytest.raises(TypeError, match=r"^Net.first \(Conv2d\): input must be a tensor, got list"):
        net([1.0])
    with pytest.raises(RuntimeError, match="type") as caught:
        net(torch.ones(4, 9, 9, dtype=torch.float64))
    assert caught.value.__notes__ == ["This came from Net.first (Conv2d)."]
