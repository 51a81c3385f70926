"""Pooling by windows is torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import images

FLOATS = [torch.float32, torch.float64, torch.bfloat16]


def odd_images(dims: int) -> list[Tensor]:
    """Unbatched, an empty batch, one channel, not contiguous."""
    x = images(dims)
    mixed = x.transpose(0, 1).contiguous().transpose(0, 1)
    return [x, x[0], x[:0], x[:, :1], mixed]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "keywords",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "dilation": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "return_indices": True},
    ],
    ids=str,
)
def test_max_pool(dims: int, keywords: dict[str, Any]) -> None:
    for x in odd_images(dims):
        assert_parity(*both(f"MaxPool{dims}d", **keywords), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "keywords",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
        {"kernel_size": 2, "ceil_mode": True},
    ],
    ids=str,
)
def test_avg_pool(dims: int, keywords: dict[str, Any]) -> None:
    for x in odd_images(dims):
        assert_parity(*both(f"AvgPool{dims}d", **keywords), x)


def test_one_size_for_each_dimension() -> None:
    assert_parity(*both("MaxPool3d", (1, 2, 3), (2, 1, 2), (0, 1, 1), (2, 1, 1)), images(3))
    assert_parity(*both("MaxPool1d", (2,), (1,)), images(1))
    assert_parity(*both("AvgPool2d", (2, 3), (1, 2), (1, 0), divisor_override=5), images(2))
    assert_parity(*both("AvgPool3d", 2, (1, 2, 3), divisor_override=-3), images(3))
    assert_parity(*both("AvgPool1d", (2,), (1,), (1,)), images(1))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
def test_every_dtype(kind: str, dims: int, dtype: torch.dtype) -> None:
    if kind == "AvgPool" and dims == 3 and dtype is torch.bfloat16:
        return  # torch has no such kernel on the CPU
    assert_parity(*both(f"{kind}{dims}d", 3, 2), images(dims, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "keywords", "error", "text"),
    [
        ("MaxPool2d", {"kernel_size": 0}, ValueError, "(kernel_size=): must be at least 1, got 0"),
        ("MaxPool2d", {"stride": (1, 0)}, ValueError, "(stride=): must be at least 1, got (1, 0)"),
        ("MaxPool2d", {"stride": (1,)}, ValueError, "(stride=): expected an int or 2 of them"),
        ("MaxPool3d", {"padding": 2}, ValueError, "(padding=): must be at most half of the wind"),
        ("MaxPool1d", {"dilation": 1.5}, TypeError, "(dilation=): expected an int or 1 of them"),
        ("AvgPool1d", {"kernel_size": "3"}, TypeError, "(kernel_size=): expected an int or 1 of"),
        ("AvgPool2d", {"padding": -1}, ValueError, "(padding=): must be at least 0, got -1"),
        ("AvgPool2d", {"padding": (0, 2)}, ValueError, "(padding=): must be at most half of the"),
        ("AvgPool3d", {"divisor_override": 0}, ValueError, "(divisor_override=): must not be 0"),
        ("AvgPool3d", {"divisor_override": 0.5}, TypeError, "(divisor_override=): expected an int"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(**{"kernel_size": 3} | keywords)


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.MaxPool1d(3), (7,), "(C, L) or (N, C, L) with L >= 3"),
        (nn.MaxPool2d(3, padding=1), (1, 1, 1, 7, 7), "(C, H, W) or (N, C, H, W)"),
        (nn.MaxPool2d((3, 1), dilation=2), (2, 4, 7), "(C, H, W) or (N, C, H, W) with H >= 5"),
        (nn.MaxPool3d(2), (7, 7, 7), "(C, D, H, W) or (N, C, D, H, W) with D >= 2, H >= 2, W >= 2"),
        (nn.AvgPool1d(3), (2, 2), "(C, L) or (N, C, L) with L >= 3"),
        (nn.AvgPool2d(2), (2, 2), "(C, H, W) or (N, C, H, W) with H >= 2, W >= 2"),
        (nn.AvgPool3d(2, padding=1), (2, 2), "(C, D, H, W) or (N, C, D, H, W)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    layer: Module, given: tuple[int, ...], expected: str
) -> None:
    assert_refused(layer, torch.ones(given), f"{expected}, got (", None)


def test_torch_refuses_what_we_do() -> None:
    """Where no window fits, torch has no answer either."""
    for dims in (1, 2, 3):
        small = torch.ones(2, *[1] * dims)
        for kind in ("MaxPool", "AvgPool"):
            ours, theirs = both(f"{kind}{dims}d", 3)
            with pytest.raises(RuntimeError):
                theirs(small)
            with pytest.raises(ValueError, match="expected input of shape"):
                ours(small)
