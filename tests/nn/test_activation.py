"""Activations that squash or gate are torch's."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import nn
from parallax.nn import activation, rectifiers, shrinking
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import Net

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
COMPLEX = [torch.complex64, torch.complex128]


def numbers(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of odd shapes, with the numbers where activations bend; not all contiguous."""
    bends = torch.tensor([[-25.0, -6.0, -3.0, -1.0, -0.5, -0.0], [0.0, 0.5, 1.0, 3.0, 6.0, 25.0]])
    some = torch.linspace(-4, 4, 24).reshape(2, 3, 4)
    every = [bends, some, some.transpose(0, 2), some[0, 0, 0], some[:0], some[:, :1]]
    return [x.to(dtype) for x in every]


def assert_elementwise(name: str, dtype: torch.dtype, *arguments: Any, **keywords: Any) -> None:
    for x in numbers(dtype):
        assert_parity(*both(name, *arguments, **keywords), x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("GELU", ()),
        ("GELU", ("tanh",)),
        ("Hardsigmoid", ()),
        ("Hardswish", ()),
        ("Hardtanh", ()),
        ("Hardtanh", (-2.0, 0.5)),
        ("LogSigmoid", ()),
        ("Mish", ()),
        ("SiLU", ()),
        ("Sigmoid", ()),
        ("Softplus", ()),
        ("Softplus", (2.0, 1.5)),
        ("Softsign", ()),
        ("Tanh", ()),
    ],
)
def test_every_activation(name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    assert_elementwise(name, dtype, *arguments)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("name", ["Sigmoid", "Tanh"])
def test_complex_numbers(name: str, dtype: torch.dtype) -> None:
    x = torch.tensor([[0.5 + 0.1j, -1.0], [2.0j, -0.25 - 0.3j]], dtype=dtype)
    assert_parity(*both(name), x)


@pytest.mark.parametrize(
    ("name", "keywords", "error", "text"),
    [
        ("GELU", {"approximate": "sigmoid"}, ValueError, "(approximate=): expected one of 'none'"),
        ("Hardtanh", {"min_val": 2.0}, ValueError, "(max_val=): must exceed min_val=2.0, got 1.0"),
        ("Hardtanh", {"min_val": "0"}, TypeError, "(min_val=): expected a number, got '0'"),
        ("Softplus", {"beta": 0}, ValueError, "(beta=): must not be 0"),
        ("Softplus", {"threshold": None}, TypeError, "(threshold=): expected a number, got None"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, keywords: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(**keywords)


def test_nothing_is_written_in_place() -> None:
    for name in ("Hardtanh", "Hardswish", "Hardsigmoid", "SiLU", "Mish"):
        x = torch.linspace(-4, 4, 9)
        before = x.clone()
        getattr(nn, name)()(x)
        assert torch.equal(x, before) and x._version == 0


@pytest.mark.parametrize("name", [*activation.__all__, *rectifiers.__all__, *shrinking.__all__])
@pytest.mark.parametrize("given", [None, [1.0], torch.nn.ReLU()], ids=["none", "list", "module"])
def test_what_is_no_tensor_is_refused_by_the_path_of_the_layer(name: str, given: Any) -> None:
    arguments = (0.5, 0.0) if name == "Threshold" else ()
    net = Net(getattr(nn, name)(*arguments)).initialize(0)
    for mode in (net.eval(), net.train(0)):
        with pytest.raises(TypeError, match=rf"^Net.layer \({name}\): input must be a tensor, got"):
            mode(given)
