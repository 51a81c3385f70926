"""Softmax, its kin, and gating by one half are torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from parallax import Module, nn
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import Net
from tests.nn.test_activation import FLOATS


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("name", ["Softmax", "Softmin", "LogSoftmax", "GLU"])
def test_every_dimension(name: str, dim: int, dtype: torch.dtype) -> None:
    x = torch.linspace(-4, 4, 2 * 6 * 4).reshape(2, 6, 4).to(dtype)
    for given in (x, x.transpose(0, 2), x[:, :, :2], x[:, :0], x[:, :2]):
        assert_parity(*both(name, dim), given)


def test_one_number() -> None:
    for name in ("Softmax", "Softmin", "LogSoftmax"):
        assert_parity(*both(name, 0), torch.tensor(2.0))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 4, 5), (0, 3, 1, 1)], ids=str)
def test_softmax2d(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_parity(*both("Softmax2d"), torch.randn(shape).to(dtype))


@pytest.mark.parametrize(
    ("layer", "given", "error", "text"),
    [
        (nn.Softmax(2), torch.ones(3, 4), IndexError, "expected input with a dimension 2, got sha"),
        (nn.Softmin(-3), torch.ones(3, 4), IndexError, "expected input with a dimension -3"),
        (nn.LogSoftmax(1), [1.0], TypeError, "input must be a tensor, got list"),
        (nn.Softmax2d(), torch.ones(3, 4), ValueError, "expected input of shape (C, H, W) or (N,"),
        (nn.Softmax2d(), None, TypeError, "input must be a tensor, got NoneType"),
        (nn.GLU(), torch.ones(2, 3), ValueError, "expected input of shape (*) with an even size"),
        (nn.GLU(), torch.tensor(1.0), IndexError, "expected input with a dimension -1, got shape"),
        (nn.GLU(), 1.0, TypeError, "input must be a tensor, got float"),
    ],
)
def test_an_input_that_does_not_fit_names_the_path(
    layer: Module, given: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=re.escape(f"Net.layer ({type(layer).__name__}): {text}")):
        Net(layer)(given)


def test_a_dimension_is_an_int_and_must_be_chosen() -> None:
    for name in ("Softmax", "Softmin", "LogSoftmax", "GLU"):
        with pytest.raises(TypeError, match=rf"^{name}\(dim=\): expected an int, got None"):
            getattr(nn, name)(None)
