"""Affine and bilinear maps are torch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn as torch_nn

from parallax import nn
from tests.nn.parity import assert_parity, assert_same_start


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 1, 4, 3), (0, 3)])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
)
def test_linear(bias: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours = nn.Linear(3, 2, bias, dtype=dtype)
    theirs = torch_nn.Linear(3, 2, bias, dtype=dtype)
    assert_parity(ours, theirs, torch.randn(shape, dtype=dtype))


def test_linear_starts_where_torchs_does() -> None:
    assert_same_start(lambda: nn.Linear(7, 5), lambda: torch_nn.Linear(7, 5))


def test_an_input_that_does_not_fit_names_the_layer_and_the_shape() -> None:
    with pytest.raises(ValueError, match=r"^Linear: expected input of shape \(\*, 3\), got \(4,\)"):
        nn.Linear(3, 2).initialize(0)(torch.ones(4))
