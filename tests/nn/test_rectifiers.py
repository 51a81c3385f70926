"""Rectifiers are torch's; slopes that are drawn depend on the key alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn as torch_nn

from parallax import func, nn, random
from tests.nn.parity import assert_parity, both
from tests.nn.refusals import Net
from tests.nn.test_activation import FLOATS, assert_elementwise, numbers


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("CELU", ()),
        ("CELU", (2.0,)),
        ("ELU", ()),
        ("ELU", (0.5,)),
        ("LeakyReLU", ()),
        ("LeakyReLU", (0.5,)),
        ("RReLU", ()),
        ("RReLU", (0.25, 0.75)),
        ("ReLU", ()),
        ("ReLU6", ()),
        ("SELU", ()),
        ("Threshold", (0.5, -3.0)),
    ],
)
def test_every_rectifier(name: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> None:
    assert_elementwise(name, dtype, *arguments)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_learned_slopes(dtype: torch.dtype) -> None:
    for x in numbers(dtype):
        assert_parity(*both("PReLU", dtype=dtype), x)
    for x in (
        torch.randn(2, 3, 4),
        torch.randn(5, 3),
        torch.randn(0, 3),
        torch.randn(4, 3).T[:, :3],
    ):
        assert_parity(*both("PReLU", 3, 0.5, dtype=dtype), x.to(dtype))


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 3), (2,), ()], ids=str)
def test_slopes_of_other_channels_are_refused(shape: tuple[int, ...]) -> None:
    net = Net(nn.PReLU(3)).initialize(0)
    text = (
        f"Net.layer (PReLU): expected input of shape (N, 3, *), got ({', '.join(map(str, shape))}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        net(torch.ones(shape))
    with pytest.raises(TypeError, match=r"^Net.layer \(PReLU\): input must be a tensor, got float"):
        net(1.0)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_drawn_slopes_lie_between_the_bounds_and_carry_gradients(dtype: torch.dtype) -> None:
    layer = nn.RReLU(0.25, 0.75).train(random.key(3))
    x = torch.linspace(-8, 8, 4001, dtype=dtype)
    out = layer(x)
    assert out.dtype is dtype
    assert torch.equal(out[x > 0], x[x > 0])
    slopes = (out / x)[x < 0]
    assert 0.24 < slopes.min() < 0.27 and 0.73 < slopes.max() < 0.76
    assert abs(slopes.double().mean() - 0.5) < 0.02
    given = x.clone().requires_grad_()
    nn.RReLU(0.25, 0.75).train(random.key(3))(given).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad[x < 0], slopes, rtol=1e-2, atol=1e-3)
    assert given.grad[x > 0].eq(1).all()


def test_drawn_slopes_are_torchs_in_distribution() -> None:
    x = -torch.ones(20000)
    torch.manual_seed(0)
    theirs = torch_nn.RReLU().train()(x)
    ours = nn.RReLU().train(7)(x)
    for moment in (1, 2, 3):
        assert abs((ours**moment).mean() - (theirs**moment).mean()) < 2e-3


def test_the_same_key_draws_the_same_slopes_and_the_global_rng_is_left_alone() -> None:
    x = -torch.ones(5)
    before = torch.random.get_rng_state()
    first = nn.RReLU().train(random.key(1))(x)
    assert torch.equal(nn.RReLU().train(random.key(1))(x), first)
    assert not torch.equal(nn.RReLU().train(random.key(2))(x), first)
    assert torch.equal(torch.random.get_rng_state(), before)
    keys = random.split(random.key(0), 3)
    rows = func.vmap(lambda key: nn.RReLU().train(key)(x))(keys)
    assert len({tuple(row.tolist()) for row in rows}) == 3
    with pytest.raises(RuntimeError, match=r"^RReLU\.rng: no random state"):
        nn.RReLU()(x)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "text"),
    [
        ("CELU", (0,), ValueError, "(alpha=): must not be 0"),
        ("ELU", ("1",), TypeError, "(alpha=): expected a number, got '1'"),
        ("LeakyReLU", (None,), TypeError, "(negative_slope=): expected a number, got None"),
        ("PReLU", (0,), ValueError, "(num_parameters=): must be at least 1, got 0"),
        ("PReLU", (2.0,), TypeError, "(num_parameters=): expected an int, got 2.0"),
        ("RReLU", (0.5, 0.25), ValueError, "(upper=): must be at least 0.5, got 0.25"),
        ("Threshold", (0.5, "a"), TypeError, "(value=): expected a number, got 'a'"),
    ],
)
def test_bad_arguments_fail_at_construction(
    name: str, arguments: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"^{name}{re.escape(text)}"):
        getattr(nn, name)(*arguments)
