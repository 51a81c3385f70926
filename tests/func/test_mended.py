"""Operators whose first derivative torch has wrong, against what they do entry by entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import parallax
from parallax import func

X = torch.linspace(-2, 3, 12, dtype=torch.float64).mul(5).sin().reshape(3, 4)
SRC = torch.linspace(-1, 1, 6, dtype=torch.float64).mul(7).cos()
WEIGHTS = torch.linspace(0.5, 1.5, 24, dtype=torch.float64).reshape(2, 3, 4)

COMPILED: Callable[..., Any] = parallax.compile(backend="aot_eager")
WAYS: dict[str, Callable[[Any], Any]] = {"eager": lambda f: f, "compiled": COMPILED}


def columns(x: Tensor, src: Tensor) -> Tensor:
    """Two columns of three are overwritten."""
    return torch.as_strided_scatter(x, src.reshape(3, 2), (3, 2), (4, 2), 1)


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_as_strided_scatter(way: str) -> None:
    def loss(x: Tensor, src: Tensor) -> Tensor:
        return (columns(x, src) * WEIGHTS[0]).sum()

    of_x, of_src = WAYS[way](func.grad(loss, (0, 1)))(X, SRC)
    kept = torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(of_x, WEIGHTS[0] * kept)
    torch.testing.assert_close(of_src, WEIGHTS[0][:, [1, 3]].reshape(-1))


def test_higher_derivatives_of_as_strided_scatter() -> None:
    leaves = X.clone().requires_grad_(), SRC.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *xs: columns(*xs).sin(), leaves)
    assert torch.autograd.gradgradcheck(lambda *xs: columns(*xs).sin(), leaves)
    _, slope = func.jvp(columns, (X, SRC), (X, SRC))
    torch.testing.assert_close(slope, columns(X, SRC))  # it is linear


def test_as_strided_scatter_of_other_layouts_is_refused() -> None:
    def loss(x: Tensor) -> Tensor:
        return torch.as_strided_scatter(x.mT, SRC[:2], (2,), (1,), 0).sum()

    assert loss(X) is not None
    with pytest.raises(RuntimeError, match=r"Write x\.contiguous\(\) for its first argument"):
        func.grad(loss)(X)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("index", [0, -1])
def test_the_gradient_of_select_scatter_within_vmap(index: int, way: str) -> None:
    batch, rows = torch.stack([X, 2 * X]), WEIGHTS[:, :, 0].cos()

    def loss(x: Tensor, src: Tensor) -> Tensor:
        outs = func.vmap(lambda x, src: torch.select_scatter(x, src, 1, index))(x, src)
        return (outs * WEIGHTS).sum()

    of_x, of_src = WAYS[way](func.grad(loss, (0, 1)))(batch, rows)
    expected = WEIGHTS.clone()
    expected[:, :, index] = 0
    torch.testing.assert_close(of_x, expected)
    torch.testing.assert_close(of_src, WEIGHTS[:, :, index])


def test_select_scatter_of_a_wrong_index_within_vmap() -> None:
    func.grad(torch.sum)(X)
    with pytest.raises(IndexError, match="out of range"):
        torch.vmap(lambda x: torch.select_scatter(x, x[0], 0, 7))(X[None])


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_of_polar_where_the_size_is_zero(way: str) -> None:
    size, angle = X[0] * torch.tensor([1, 0, 1, 0]), X[1]

    def loss(size: Tensor, angle: Tensor) -> Tensor:
        found = torch.polar(size, angle)
        return (found.real + 2 * found.imag).sum()

    of_size, of_angle = WAYS[way](func.grad(loss, (0, 1)))(size, angle)
    torch.testing.assert_close(of_size, angle.cos() + 2 * angle.sin())
    torch.testing.assert_close(of_angle, size * (2 * angle.cos() - angle.sin()))
    value, slope = func.jvp(torch.polar, (size, angle), (size.cos(), angle))
    turned = torch.complex(angle.cos(), angle.sin())
    torch.testing.assert_close(value, size * turned)
    torch.testing.assert_close(slope, (size.cos() + 1j * size * angle) * turned)
