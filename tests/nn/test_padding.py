"""Padding with a number is torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import DTYPES, images
from tests.nn.test_pooling import odd_images

SIDES = (2, 1, 0, 3, 1, -1)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["Constant", "Zero"])
def test_every_amount(kind: str, dims: int) -> None:
    value = (0.5,) if kind == "Constant" else ()
    for x in [*odd_images(dims), images(dims)[0, 0]]:
        assert_parity(*both(f"{kind}Pad{dims}d", 2, *value), x)
        assert_parity(*both(f"{kind}Pad{dims}d", SIDES[: 2 * dims], *value), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    assert_parity(*both("ConstantPad2d", 1, -2), images(2, dtype=dtype))
    assert_parity(*both("ZeroPad3d", 1), images(3, dtype=dtype))
    assert_parity(*both("ZeroPad1d", 1), torch.arange(4))


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("ZeroPad1d", ((1, 2, 3),), ValueError, "(padding=): expected an int or 2 of them"),
        ("ZeroPad2d", ("1",), TypeError, "(padding=): expected an int or 4 of them, got '1'"),
        ("ConstantPad3d", (1.0, 0), TypeError, "(padding=): expected an int or 6 of them, got 1.0"),
        ("ConstantPad1d", (1, None), TypeError, "(value=): expected a number, got None"),
        ("ReflectionPad1d", ((1,),), ValueError, "(padding=): expected an int or 2 of them"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(*arguments)


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.ZeroPad2d(1), (3,), "(*, H, W)"),
        (nn.ConstantPad2d((-2, -2, 0, -3), 1), (5, 2, 9), "(*, H, W) with H >= 3, W >= 4"),
        (nn.ZeroPad3d(1), (3, 3), "(*, D, H, W)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    layer: Module, given: tuple[int, ...], expected: str
) -> None:
    assert_refused(layer, torch.ones(given), expected, 1)
