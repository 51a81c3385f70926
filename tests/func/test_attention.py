"""Forward derivatives of attention, of which torch's fused kernels have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from parallax import func

HIDES = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    k, v = [x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v)]
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return (scores if mask is None else scores + mask).softmax(-1) @ v


@pytest.mark.parametrize(
    ("options", "mask"),
    [
        ({}, None),
        ({"scale": 0.3}, None),
        ({"attn_mask": HIDES}, torch.zeros(3, 3).masked_fill(~HIDES, -torch.inf)),
        ({"attn_mask": HIDES.double()}, HIDES.double()),
        ({"is_causal": True}, torch.full((3, 3), -torch.inf).triu(1)),
        ({"enable_gqa": True}, None),
    ],
    ids=["plain", "scale", "bools", "added", "causal", "grouped"],
)
def test_jvp_and_jvp_of_jvp_of_attention(options: dict[str, Any], mask: Tensor | None) -> None:
    torch.manual_seed(0)
    heads = 1 if "enable_gqa" in options else 2
    q, v = torch.randn(2, 2, 3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    k = torch.randn(2, heads, 3, 4, dtype=torch.float64)
    mask = None if mask is None else mask.double()

    def kernel(q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k.cos(), **options).sin()

    def operators(q: Tensor) -> Tensor:
        return by_hand(q, k, k.cos(), mask, options.get("scale")).sin()

    direction = v.expand_as(q)
    once = func.jvp(kernel, (q,), (direction,))
    torch.testing.assert_close(once, torch.func.jvp(operators, (q,), (direction,)))

    def twice(fn: Any, jvp: Any) -> Any:
        return jvp(lambda q: jvp(fn, (q,), (direction,))[1], (q,), (direction,))[1]

    torch.testing.assert_close(twice(kernel, func.jvp), twice(operators, torch.func.jvp))


def test_gradients_of_gradients_of_attention() -> None:
    torch.manual_seed(1)
    q, k, weight = (torch.randn(2, 2, 3, 4, dtype=torch.float64) for _ in range(3))

    def twice(attend: Any, grad: Any) -> Any:
        def slope(q: Tensor, k: Tensor) -> Tensor:
            inner = grad(lambda q: attend(q, k).sin().sum())(q)
            out: Tensor = (inner * weight).sum()
            return out

        return grad(slope, argnums=(0, 1))(q, k)

    def kernel(q: Tensor, k: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, k.cos(), HIDES)

    mask = torch.zeros(3, 3, dtype=torch.float64).masked_fill(~HIDES, -torch.inf)
    wanted = twice(lambda q, k: by_hand(q, k, k.cos(), mask, None), torch.func.grad)
    torch.testing.assert_close(twice(kernel, func.grad), wanted)
