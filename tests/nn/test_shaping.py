"""Reshaping and shuffling are torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused

X = torch.linspace(-1, 1, 2 * 12 * 4 * 6).reshape(2, 12, 4, 6)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Flatten", ()),
        ("Flatten", (0, 2)),
        ("Flatten", (-3, -2)),
        ("Unflatten", (1, (3, -1))),
        ("Unflatten", (-1, (2, 1, 3))),
        ("Unflatten", (1, [3, 4])),
        ("PixelShuffle", (2,)),
        ("PixelUnshuffle", (2,)),
        ("ChannelShuffle", (3,)),
    ],
)
def test_every_layer(name: str, arguments: tuple[Any, ...]) -> None:
    show = arguments != (1, [3, 4])  # torch keeps the list
    for x in (
        X,
        X[:0].int(),
        X.transpose(0, 1).contiguous().transpose(0, 1),
        X.bfloat16(),
        X.int(),
    ):
        assert_parity(*both(name, *arguments), x, show=show)


def test_other_ranks() -> None:
    assert_parity(*both("PixelShuffle", 2), X[0])
    assert_parity(*both("PixelUnshuffle", 2), X[0, 0][None])
    assert_parity(*both("PixelShuffle", 1), X[None])
    assert_parity(*both("Flatten", 0), torch.tensor(1.0))
    assert_parity(*both("ChannelShuffle", 2), X[0, :, :, :])


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("Flatten", (1.0,), TypeError, "(start_dim=): expected an int, got 1.0"),
        ("Flatten", (-1, -2), ValueError, "(end_dim=): must not come before start_dim=-1, got -2"),
        ("Unflatten", ("C", (2, 2)), TypeError, "(dim=): expected an int, got 'C'"),
        ("Unflatten", (1, 4), TypeError, "(unflattened_size=): expected ints, got 4"),
        ("Unflatten", (1, (2.0, 2)), TypeError, "(unflattened_size=): expected ints, got (2.0, 2)"),
        ("Unflatten", (1, (-1, -1)), ValueError, "(unflattened_size=): expected sizes, at most"),
        ("Unflatten", (1, ()), ValueError, "(unflattened_size=): expected sizes, at most one of"),
        ("PixelShuffle", (0,), ValueError, "(upscale_factor=): must be at least 1, got 0"),
        ("PixelUnshuffle", (2.0,), TypeError, "(downscale_factor=): expected an int, got 2.0"),
        ("ChannelShuffle", (-1,), ValueError, "(groups=): must be at least 1, got -1"),
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
        (nn.Flatten(), X[0, 0, 0], "(*) with dimensions 1 to -1, got (6,)"),
        (nn.Flatten(2, 5), X, "(*) with dimensions 2 to 5, got (2, 12, 4, 6)"),
        (nn.Unflatten(1, (5, -1)), X, "(*) whose dimension 1 fits (5, -1), got (2, 12, 4, 6)"),
        (nn.Unflatten(4, (5, -1)), X, "(*) whose dimension 4 fits (5, -1), got (2, 12, 4, 6)"),
        (nn.PixelShuffle(5), X, "(*, C * 25, H, W), got (2, 12, 4, 6)"),
        (nn.PixelShuffle(2), X[0, 0], "(*, C * 4, H, W), got (4, 6)"),
        (nn.PixelUnshuffle(3), X, "(*, C, H * 3, W * 3), got (2, 12, 4, 6)"),
        (nn.ChannelShuffle(5), X, "(N, 5 * C, *) of 3 dimensions or more, got (2, 12, 4, 6)"),
        (nn.ChannelShuffle(2), X[0, 0], "(N, 2 * C, *) of 3 dimensions or more, got (4, 6)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path(
    layer: Module, given: Tensor, expected: str
) -> None:
    assert_refused(layer, given, expected, 1)
