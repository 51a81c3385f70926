"""Padding with the input itself is torch's."""

from __future__ import annotations

import pytest
import torch

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import assert_refused
from tests.nn.test_conv import DTYPES, images
from tests.nn.test_pooling import odd_images

KINDS = ["Reflection", "Replication", "Circular"]
SIDES = (2, 1, 0, 3, 1, 2)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_amount(kind: str, dims: int) -> None:
    for x in odd_images(dims):
        assert_parity(*both(f"{kind}Pad{dims}d", 2), x)
        assert_parity(*both(f"{kind}Pad{dims}d", SIDES[: 2 * dims]), x)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(kind: str, dims: int, dtype: torch.dtype) -> None:
    assert_parity(*both(f"{kind}Pad{dims}d", 1), images(dims, dtype=dtype))


@pytest.mark.parametrize("kind", ["Replication", "Circular"])
def test_what_is_cut_off(kind: str) -> None:
    assert_parity(*both(f"{kind}Pad2d", (-1, 1, 2, -2)), images(2))


@pytest.mark.parametrize("sides", [(1, -3), (2, -2), (-1, 2), (-3, 1), (-1, -2), (3, -1)])
def test_what_is_cut_off_before_it_is_wound_around(sides: tuple[int, int]) -> None:
    x = torch.arange(4.0)[None]
    inner = x[:, max(-sides[0], 0) : 4 - max(-sides[1], 0)]
    before, after = [max(side, 0) for side in sides]
    wound = [inner[:, inner.shape[1] - before :], inner, inner[:, :after]]
    assert torch.equal(nn.CircularPad1d(sides)(x), torch.cat(wound, dim=1))
    assert_parity(*both("CircularPad1d", sides), x)


@pytest.mark.parametrize("sides", [(1, -4), (2, -3), (-3, 2), (-4, 1), (-2, -2)])
def test_nothing_is_wound_around_that_is_not_there(sides: tuple[int, int]) -> None:
    """torch.nn returns whatever stood in memory."""
    with pytest.raises(ValueError, match=r"^CircularPad1d: expected input of shape"):
        nn.CircularPad1d(sides)(torch.arange(4.0)[None])


@pytest.mark.parametrize(
    ("layer", "given", "expected"),
    [
        (nn.ReflectionPad1d(3), (2, 3), "(C, L) or (N, C, L) with L >= 4"),
        (nn.ReflectionPad1d(3), (2, 2, 2, 9), "(C, L) or (N, C, L) with L >= 4"),
        (nn.ReflectionPad2d((1, 2, 3, 0)), (2, 3, 9), "(C, H, W) or (N, C, H, W) with H >= 4, W"),
        (nn.ReplicationPad2d(1), (4, 4), "(C, H, W) or (N, C, H, W)"),
        (nn.ReplicationPad3d(1), (4, 4, 4), "(C, D, H, W) or (N, C, D, H, W)"),
        (nn.CircularPad1d(3), (2, 2), "(C, L) or (N, C, L) with L >= 3"),
        (nn.CircularPad2d(2), (7, 9), "(C, H, W) or (N, C, H, W) with H >= 2, W >= 2"),
        (nn.CircularPad3d(1), (1,) * 6, "(C, D, H, W) or (N, C, D, H, W)"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path_and_the_shape(
    layer: Module, given: tuple[int, ...], expected: str
) -> None:
    assert_refused(layer, torch.ones(given), expected, ())
