"""Transposed convolutions are torch's, also where the output's size is asked for."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parallax import nn
from tests.nn.parity import assert_parity, assert_starts_alike, both
from tests.nn.test_conv import DTYPES, SPATIAL, images


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1, "bias": False},
        {"dilation": 2, "padding": 2, "groups": 2},
        {"groups": 4, "stride": 3, "dilation": 3, "output_padding": 2},
    ],
    ids=str,
)
def test_every_argument(dims: int, keywords: dict[str, Any]) -> None:
    assert_parity(*both(f"ConvTranspose{dims}d", 4, 8, 3, **keywords), images(dims))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dims: int, dtype: torch.dtype) -> None:
    pair = both(f"ConvTranspose{dims}d", 4, 2, 3, stride=2, dtype=dtype)
    assert_parity(*pair, images(dims, dtype=dtype))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_odd_shapes(dims: int) -> None:
    pair = both(f"ConvTranspose{dims}d", 4, 2, 2)
    x = images(dims)
    for odd in (x[0], x[:0], x[..., :1], x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert_parity(*pair, odd)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_output_size_can_be_asked_for(dims: int) -> None:
    pair = both(f"ConvTranspose{dims}d", 4, 2, 3, stride=2, padding=1, dilation=2)
    x = images(dims)
    size = [2 * s + 2 for s in SPATIAL[:dims]]
    assert_parity(*pair, x, output_size=size)
    assert_parity(*pair, x, output_size=torch.Size([2, 2, *size]))
    assert_parity(*pair, x[0], output_size=size)
    assert_parity(*pair, x[0], output_size=[2, *size])


@pytest.mark.parametrize("size", [[8], [18], [9, 9], [2, 2, 2, 9]], ids=str)
def test_an_output_size_that_cannot_be_had_is_refused(size: list[int]) -> None:
    ours, theirs = both("ConvTranspose1d", 4, 2, 3, stride=2)
    with pytest.raises(ValueError):  # noqa: PT011  # torch's own words are no concern
        theirs(images(1), output_size=size)
    text = "ConvTranspose1d: output_size must be within (15 to 16) for this input, got "
    with pytest.raises(ValueError, match=f"^{re.escape(text + str(tuple(size)))}"):
        ours.initialize(0)(images(1), output_size=size)


def test_it_starts_where_torchs_does() -> None:
    for name in ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"):
        assert_starts_alike(name, 4, 6, 3, groups=2)


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"in_channels": 3, "groups": 2}, ValueError, "(in_channels=): must be divisible by"),
        ({"out_channels": 3, "groups": 2}, ValueError, "(out_channels=): must be divisible by"),
        ({"padding": "same"}, TypeError, "(padding=): expected an int or 2 of them, got 'same'"),
        ({"output_padding": 1}, ValueError, "(output_padding=): must be less than the stride"),
        ({"padding_mode": "circular"}, ValueError, "(padding_mode=): expected one of 'zeros'"),
        ({"stride": (1, 0)}, ValueError, "(stride=): must be at least 1, got (1, 0)"),
        ({"kernel_size": 2.0}, TypeError, "(kernel_size=): expected an int or 2 of them, got 2.0"),
    ],
)
def test_bad_arguments_fail_at_construction(
    keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    arguments: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "kernel_size": 3} | keywords
    with pytest.raises(error, match=f"^ConvTranspose2d{re.escape(text)}"):
        nn.ConvTranspose2d(**arguments)


@pytest.mark.parametrize("given", [(3, 9, 9), (4, 9), (1, 4, 9, 9, 9), (4, 0, 9)], ids=str)
def test_an_input_that_does_not_fit_names_the_shape(given: tuple[int, ...]) -> None:
    text = "ConvTranspose2d: expected input of shape (4, H, W) or (N, 4, H, W)"
    with pytest.raises(ValueError, match=re.escape(text)):
        nn.ConvTranspose2d(4, 2, 3).initialize(0)(torch.ones(given))
