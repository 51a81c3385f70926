"""Affine and bilinear maps are torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn as torch_nn

from parallax import Module, nn
from tests.nn.parity import assert_parity, assert_same_start, assert_starts_alike, both


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


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(5,), (), (2, 1, 4), (0,)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bilinear(bias: bool, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = torch.randn(*batch, 3, dtype=dtype), torch.randn(*batch, 2, dtype=dtype)
    assert_parity(*both("Bilinear", 3, 2, 4, bias, dtype=dtype), *inputs)


def test_inputs_need_not_be_contiguous() -> None:
    assert_parity(*both("Linear", 3, 2), torch.randn(3, 5).T)
    assert_parity(*both("Bilinear", 3, 2, 4), torch.randn(3, 5).T, torch.randn(2, 5).T)


def test_bilinear_starts_where_torchs_does() -> None:
    assert_starts_alike("Bilinear", 7, 3, 5)


def test_identity_takes_any_arguments_and_returns_its_input() -> None:
    x = torch.ones(2)
    assert nn.Identity(3, bias=False)(x) is x
    assert repr(nn.Identity(3)) == repr(torch_nn.Identity(3))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: nn.Linear(-1, 2),
            ValueError,
            r"Linear\(in_features=\): must be at least 0, got -1",
        ),
        (
            lambda: nn.Linear(1, True),
            TypeError,
            r"Linear\(out_features=\): expected an int, got True",
        ),
        (
            lambda: nn.Bilinear(0, 1, 1),
            ValueError,
            r"Bilinear\(in1_features=\): must be at least",
        ),
        (lambda: nn.Bilinear(1, 1, True), TypeError, r"Bilinear\(out_features=\): expected an int"),
    ],
)
def test_bad_arguments_fail_at_construction(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{text}"):
        make()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (((5, 2), (5, 4)), r"input1 of shape \(\*, 3\), got \(5, 2\)"),
        (((5, 3), (5, 2)), r"input2 of shape \(5, 4\), got \(5, 2\)"),
        (((5, 3), (1, 4)), r"input2 of shape \(5, 4\), got \(1, 4\)"),
        (((), (4,)), r"input1 of shape \(\*, 3\), got \(\)"),
    ],
)
def test_inputs_that_do_not_fit_name_the_path(inputs: Any, text: str) -> None:
    class Pair(Module):
        form: Module

        def forward(self, *inputs: Any) -> Any:
            return self.form(*inputs)

    pair = Pair(nn.Bilinear(3, 4, 2)).initialize(0)
    with pytest.raises(ValueError, match=rf"^Pair.form \(Bilinear\): expected {text}"):
        pair(*map(torch.ones, inputs))
