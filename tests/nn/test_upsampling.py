"""Upsampling is torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import images

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
MODES = [(mode, dims) for mode in ("nearest", "nearest-exact", "area") for dims in (1, 2, 3)]
MODES += [("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("mode", "dims"), MODES)
def test_every_mode(mode: str, dims: int, dtype: torch.dtype) -> None:
    x = images(dims, dtype=dtype)
    corners: list[bool | None] = [None]
    if mode not in ("nearest", "nearest-exact", "area"):
        corners += [True, False]
    for align in corners:
        assert_parity(*both("Upsample", 9, None, mode, align), x)
        assert_parity(*both("Upsample", None, 1.5, mode, align), x)
    assert_parity(*both("Upsample", (9, 8, 3)[:dims], mode=mode), x)
    assert_parity(*both("Upsample", scale_factor=(2, 0.7, 1)[:dims], mode=mode), x)
    assert_parity(*both("Upsample", scale_factor=1.7, mode=mode, recompute_scale_factor=True), x)
    assert_parity(*both("Upsample", 9, mode=mode), x[:0])
    assert_parity(*both("Upsample", 9, mode=mode), x.transpose(0, 1))


def test_images() -> None:
    for arguments in ((9,), ((9, 8),), (None, 2), (None, (2.0, 1.5))):
        for name in ("UpsamplingNearest2d", "UpsamplingBilinear2d"):
            assert_parity(*both(name, *arguments), images(2))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((), ValueError, ": give either size or scale_factor"),
        ((2, 2), ValueError, ": give either size or scale_factor"),
        ((0,), ValueError, "(size=): must be at least 1, got 0"),
        ((2.0,), TypeError, "(size=): expected an int or one for each dimension, got 2.0"),
        ((None, -1), ValueError, "(scale_factor=): must be positive, got -1"),
        ((None, "2"), TypeError, "(scale_factor=): expected a number or one for each dimension"),
        ((2, None, "cubic"), ValueError, "(mode=): expected one of 'nearest', 'nearest-exact', "),
        ((2, None, "nearest", True), ValueError, "(align_corners=): must be None for mode='near"),
        ((2, None, "linear", None, True), ValueError, "(recompute_scale_factor=): must be None or"),
    ],
)
def test_bad_arguments_fail_at_construction(
    arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^Upsample{re.escape(text)}"):
        nn.Upsample(*arguments)


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.Upsample(2), (2, 3), "(N, C, L) or (N, C, H, W) or (N, C, D, H, W) with no size 0"),
        (nn.Upsample((2, 2)), (2, 3, 4), "(N, C, H, W) with no size 0 but N"),
        (nn.Upsample(scale_factor=(2, 2, 2)), (2, 3, 4), "(N, C, D, H, W) with no size 0 but N"),
        (nn.Upsample(2, mode="linear"), (2, 3, 4, 4), "(N, C, L) with no size 0 but N"),
        (nn.UpsamplingBilinear2d(2), (3, 4, 4), "(N, C, H, W) with no size 0 but N"),
        (nn.Upsample(2), (2, 3, 0), "(N, C, L) or (N, C, H, W) or (N, C, D, H, W) with no size 0"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    layer: Module, given: tuple[int, ...], expected: str
) -> None:
    assert_refused(layer, torch.ones(given), expected, "x")
