"""Activations that draw small numbers to zero are torch's."""

from __future__ import annotations

import pytest
import torch

from parallax import nn
from tests.nn.test_activation import FLOATS, assert_elementwise


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", ["Hardshrink", "Softshrink", "Tanhshrink"])
def test_every_activation(name: str, dtype: torch.dtype) -> None:
    assert_elementwise(name, dtype)
    if name != "Tanhshrink":
        assert_elementwise(name, dtype, 1.5)


def test_bad_arguments_fail_at_construction() -> None:
    with pytest.raises(ValueError, match=r"^Softshrink\(lambd=\): must be at least 0, got -1"):
        nn.Softshrink(-1)
    with pytest.raises(TypeError, match=r"^Hardshrink\(lambd=\): expected a number, got None"):
        nn.Hardshrink(None)  # type: ignore[arg-type]  # the mistake
