"""Rows of a table reduced in bags, in operators that have every derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat.gradients import WhereRecorded

__all__ = ["REDUCTIONS", "bagged", "bags_watched"]

REDUCTIONS = {"sum": 0, "mean": 1, "max": 2}
"""The reductions by the numbers that torch's kernel knows them by."""


def bagged(
    weight: Tensor,
    indices: Tensor,
    starts: Tensor,
    mode: int,
    factors: Tensor | None = None,
    padding: int | None = None,
    by_frequency: bool = False,
) -> Tensor:
    """The result of ``torch.embedding_bag``.

    Args:
        weight: the table, ``(rows, size)``.
        indices: of rows, ``(N,)``, one bag after the other.
        starts: where each bag begins, ``(bags,)``.
        mode: one of ``REDUCTIONS``.
        factors: of the rows, ``(N,)``; of a sum only.
        padding: the row that is ignored.
        by_frequency: whether gradients are divided by how often a row occurs.
    """
    if not len(indices):
        return weight.new_zeros(len(starts), weight.shape[1])
    places = torch.arange(len(indices), device=indices.device)
    ends = torch.cat([starts[1:], starts.new_full((1,), len(indices))])
    inside = (places >= starts[:, None]) & (places < ends[:, None])
    if padding is not None:
        inside = inside & (indices != padding)
    rows = F.embedding(indices, weight, scale_grad_by_freq=by_frequency)
    if mode == REDUCTIONS["max"]:
        # The first of the largest, whose place is not differentiated.
        seen = torch.where(inside[..., None], rows.detach(), -torch.inf)
        largest = rows.gather(0, seen.argmax(1))
        return torch.where(inside.any(1, keepdim=True), largest, 0)
    if factors is not None:
        rows = rows * factors[:, None]
    shares = inside.to(rows.dtype)
    if mode == REDUCTIONS["mean"]:
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1)
    return shares @ rows


def _rule(node: Any) -> Any:
    bags, size = node._input_metadata[0].shape
    starts, rows, padding = node._saved_offsets, node._saved_weight_sym_argsize_0, None
    # For the kernel, the number after the last row means no padding.
    if node._saved_padding_idx < rows:
        padding = node._saved_padding_idx
    factors, weight = node._saved_per_sample_weights, node._saved_weight
    if weight is None:  # the gradient depends on no row
        like = node._input_metadata[0]
        weight = torch.zeros(rows, size, dtype=like.dtype, device=like.device)
    indices, mode, by_frequency = (
        node._saved_indices, node._saved_mode, node._saved_scale_grad_by_freq,
    )  # fmt: skip
    chosen = node._saved_result3

    def again(weight: Tensor, factors: Tensor | None) -> Tensor:
        if mode == REDUCTIONS["max"]:
            return torch.where(node._saved_result2[:bags, None] > 0, weight.gather(0, chosen), 0)
        return bagged(weight, indices, starts[:bags], mode, factors, padding, by_frequency)

    return (weight, factors), again


bags_watched: Callable[[Tensor], Tensor] = WhereRecorded({"EmbeddingBagBackward0": _rule}).watch
"""Called with the output of ``torch.embedding_bag`` in plain eager code."""
