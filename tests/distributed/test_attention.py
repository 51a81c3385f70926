"""Attention of distributed tensors on the kernel of the CPU: the numbers of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard

from parallax import func
from tests.meshes import ranks, spread, whole

MASKS: dict[str, Tensor | None] = {
    "causal": None,
    "one for all": torch.ones(6, 6).tril().bool(),
    "one for each example": torch.arange(144.0).view(4, 1, 6, 6).sin(),
    "one for each head": torch.arange(144.0).view(1, 4, 6, 6).sin(),
}


def attended(query: Any, mask: Any) -> Any:
    y = F.scaled_dot_product_attention(query, query, query, mask, is_causal=mask is None)
    return y.square().sum()


def query() -> Tensor:
    return torch.arange(768.0).view(4, 4, 6, 8).cos()


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_attention_by_batch_and_head(mask: Tensor | None) -> None:
    expected = func.grad(attended)(query(), mask)
    with ranks(2, 2) as mesh:
        cut = spread(query(), mesh, Shard(0), Shard(1))
        placed = None if mask is None else spread(mask, mesh, Replicate(), Replicate())
        found = func.grad(attended)(cut, placed)
        torch.testing.assert_close(whole(found), expected)


def test_a_mask_without_heads() -> None:
    mask = torch.arange(144.0).view(4, 6, 6).sin()
    expected = func.grad(attended)(query(), mask)
    with ranks(2) as mesh:  # torch looks for placements on larger ones for seconds
        cut, placed = spread(query(), mesh, Shard(0)), spread(mask, mesh, Replicate())
        torch.testing.assert_close(whole(func.grad(attended)(cut, placed)), expected)


def test_a_mask_that_is_cut_is_refused() -> None:
    mask = MASKS["one for each head"]
    assert mask is not None
    with ranks(2) as mesh:
        cut = spread(query(), mesh, Shard(0))
        with pytest.raises(RuntimeError, match=r"a mask is taken whole.*redistribute"):
            attended(cut, spread(mask, mesh, Shard(1)))
