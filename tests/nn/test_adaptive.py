"""Pooling into a number of windows is torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import images
from tests.nn.test_pooling import FLOATS, odd_images


@pytest.mark.parametrize("kind", ["AdaptiveMaxPool", "AdaptiveAvgPool"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_every_size(kind: str, dims: int, size: int) -> None:
    for x in odd_images(dims):
        assert_parity(*both(f"{kind}{dims}d", size), x)


@pytest.mark.parametrize("kind", ["AdaptiveMaxPool", "AdaptiveAvgPool"])
def test_one_size_for_each_dimension_and_none_for_the_inputs_own(kind: str) -> None:
    assert_parity(*both(f"{kind}1d", (2,)), images(1))
    assert_parity(*both(f"{kind}2d", (2, None)), images(2))
    assert_parity(*both(f"{kind}3d", (None, 2, 4)), images(3))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_dtype_and_indices(dims: int, dtype: torch.dtype) -> None:
    x = images(dims, dtype=dtype)
    assert_parity(*both(f"AdaptiveAvgPool{dims}d", 2), x)
    assert_parity(*both(f"AdaptiveMaxPool{dims}d", 2, return_indices=True), x)


@pytest.mark.parametrize(
    ("name", "size", "error", "text"),
    [
        ("AdaptiveAvgPool1d", None, TypeError, "expected an int or 1 of them, got None"),
        ("AdaptiveAvgPool2d", None, TypeError, "expected an int or 2 of them, got None"),
        ("AdaptiveAvgPool2d", 2.0, TypeError, "expected an int or 2 of them, got 2.0"),
        ("AdaptiveMaxPool2d", (2, 2, 2), TypeError, "expected an int or 2 of them, got (2"),
        ("AdaptiveMaxPool3d", (2, -1, None), ValueError, "must not be negative, got (2, -1, None)"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, size: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape('(output_size=): ' + text)}"):
        getattr(nn, name)(size)


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.AdaptiveAvgPool1d(3), (7,), "(C, L) or (N, C, L)"),
        (nn.AdaptiveAvgPool2d((2, None)), (7,), "(C, H, W) or (N, C, H, W)"),
        (nn.AdaptiveAvgPool3d(2), (2, 7, 7), "(C, D, H, W) or (N, C, D, H, W)"),
        (nn.AdaptiveMaxPool1d(2), (2, 0), "(C, L) or (N, C, L) with C >= 1, L >= 1"),
        (nn.AdaptiveMaxPool2d(2), (2, 2), "(C, H, W) or (N, C, H, W)"),
        (nn.AdaptiveMaxPool3d(2), (1,) * 6, "(C, D, H, W) or (N, C, D, H, W)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    layer: Module, given: tuple[int, ...], expected: str
) -> None:
    assert_refused(layer, torch.ones(given), f"{expected}, got (", 1.0)
