"""Rotary embeddings turn pairs of features, as complex numbers do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from parallax import nn, tree


def by_complex_numbers(x: Tensor, positions: Tensor, base: float, interleaved: bool) -> Tensor:
    """Equation 34 of the paper: each pair as one complex number, times a unit one."""
    dim = x.shape[-1]
    pairs = x.double().unflatten(-1, (dim // 2, 2) if interleaved else (2, dim // 2))
    one, two = pairs.unbind(-1 if interleaved else -2)
    theta = torch.tensor([base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    angles = positions.double().unsqueeze(-1) * theta
    turned = torch.complex(one, two) * torch.polar(torch.ones_like(angles), angles)
    parts = [turned.real, turned.imag]
    return torch.stack(parts, -1 if interleaved else -2).flatten(-2).to(x.dtype)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("shape", [(5, 2), (2, 3, 7, 8), (1, 0, 4)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-2)],
)
def test_it_is_a_product_of_complex_numbers(
    interleaved: bool, base: float, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(shape, dtype=dtype)
    rotary = nn.RotaryEmbedding(shape[-1], base, interleaved=interleaved)
    for positions in (None, torch.arange(3, 3 + shape[-2]), torch.randint(50, shape[-2:-1])):
        found = rotary(x) if positions is None else rotary(x, positions)
        known = torch.arange(shape[-2]) if positions is None else positions
        expected = by_complex_numbers(x, known, base, interleaved)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_products_depend_on_the_distance_alone() -> None:
    rotary = nn.RotaryEmbedding(16)
    q, k = torch.randn(1, 16, dtype=torch.float64), torch.randn(1, 16, dtype=torch.float64)

    def product(i: int, j: int) -> Any:
        return (rotary(q, torch.tensor([i])) * rotary(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(product(3, 8), product(103, 108))


def test_each_sequence_may_have_positions_of_its_own() -> None:
    rotary = nn.RotaryEmbedding(4)
    x, positions = torch.randn(2, 5, 4), torch.randint(50, (2, 5))
    rows = [rotary(row, places) for row, places in zip(x, positions, strict=True)]
    torch.testing.assert_close(rotary(x, positions), torch.stack(rows))


def test_it_has_no_leaves() -> None:
    assert tree.leaves(nn.RotaryEmbedding(4)) == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RotaryEmbedding\(dim=\): must be even, got 3"):
        nn.RotaryEmbedding(3)
    with pytest.raises(ValueError, match=r"RotaryEmbedding\(base=\): must be at least"):
        nn.RotaryEmbedding(4, 0)
    rotary = nn.RotaryEmbedding(4)
    wrong: Any
    for wrong in (torch.ones(2, 6), torch.ones(4), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"expected input of shape \(\*, L, 4\) of floats"):
            rotary(wrong)
    with pytest.raises(ValueError, match=r"expected positions of shape \(\*, 2\), got \(3,\)"):
        rotary(torch.ones(2, 4), torch.arange(3))
