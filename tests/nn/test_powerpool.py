"""Pooling by power sums is torch's, in every bit, though even powers take fewer steps."""

from __future__ import annotations

import re
from math import inf
from typing import Any

import pytest
import torch

from parallax import nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import images
from tests.nn.test_pooling import FLOATS, odd_images


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("power", [1, 2, 3, 4.0, 1.5, -2, inf, -inf])
def test_every_power(dims: int, power: float) -> None:
    x = images(dims).clone()
    x[:, :2, :2] = 0  # where the power's gradient is infinite
    assert_parity(*both(f"LPPool{dims}d", power, 2), x)
    assert_parity(*both(f"LPPool{dims}d", power, 3, 1, ceil_mode=True), x.abs())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_odd_shapes(dims: int) -> None:
    for x in odd_images(dims):
        assert_parity(*both(f"LPPool{dims}d", 2, 3, 2), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_dtype(dims: int, dtype: torch.dtype) -> None:
    if dims == 3 and dtype is torch.bfloat16:
        return  # torch has no mean pool of such volumes on the CPU
    assert_parity(*both(f"LPPool{dims}d", 2, 3), images(dims, dtype=dtype))


def test_one_size_for_each_dimension() -> None:
    assert_parity(*both("LPPool2d", 2, (2, 3), (1, 2)), images(2))
    assert_parity(*both("LPPool3d", 4, (2, 3, 1)), images(3))
    torch.testing.assert_close(
        nn.LPPool1d(3, (2,))(images(1)), nn.LPPool1d(3, 2)(images(1)), equal_nan=True
    )


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((0, 2), ValueError, "(norm_type=): must not be 0"),
        (("2", 2), TypeError, "(norm_type=): expected a number, got '2'"),
        ((2, 0), ValueError, "(kernel_size=): must be at least 1, got 0"),
        ((2, (2, 2, 2)), ValueError, "(kernel_size=): expected an int or 2 of them"),
        ((2, 2, 0), ValueError, "(stride=): must be at least 1, got 0"),
    ],
)
def test_bad_arguments_fail_at_construction(
    arguments: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^LPPool2d{re.escape(text)}"):
        nn.LPPool2d(*arguments)


@pytest.mark.parametrize("power", [2, 3])
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(power: float) -> None:
    for given in ((2, 2, 7), (7, 7), (1, 1, 1, 7, 7)):
        expected = "(C, H, W) or (N, C, H, W) with H >= 3"
        assert_refused(nn.LPPool2d(power, 3), torch.ones(given), expected, "x")
