"""Per-sample gradients kept as factors: their norms and weighted sums without the gradients.

A matrix that multiplies ``T`` vectors of a sample has the gradient ``sum_t left_t right_t^T``,
where ``right_t`` is the vector and ``left_t`` the gradient of the loss with respect to the product.
Its squared norm is ``sum_ts (left_t . left_s) (right_t . right_s)`` (Goodfellow, "Efficient
Per-Example Gradient Computations", 2015; Li et al., "Large Language Models Can Be Strong
Differentially Private Learners", 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Outer", "PerSample"]

# Squares of half numbers overflow.
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


@dataclass(frozen=True)
class Outer:
    """The gradients of one use of a leaf, as sums of outer products over ``T`` positions.

    Attributes:
        left: ``(batch, groups, T, p)``; or ``(batch, T)``, the numbers of rows of a table.
        right: ``(batch, groups, T, q)``.
    """

    left: Tensor
    right: Tensor

    @property
    def is_lookup(self) -> bool:
        """Whether the left factor stands for one row each."""
        return self.left.dim() == 2


class PerSample:
    """The per-sample gradients of one leaf: all of its uses added.

    Where a leaf is used several times, by ties or in a loop, the norm is that of the sum.

    Args:
        shape: of the leaf.
        outers: the uses whose gradients are known as factors.
        wholes: gradients of other uses, each ``(batch, *shape)``.
    """

    __slots__ = ("lookups", "products", "shape", "whole")

    def __init__(
        self, shape: torch.Size, outers: Sequence[Outer], wholes: Sequence[Tensor]
    ) -> None:
        self.shape = shape
        self.products = _joined([outer for outer in outers if not outer.is_lookup])
        self.lookups = _joined([outer for outer in outers if outer.is_lookup])
        self.whole: Tensor | None = sum(wholes[1:], wholes[0]) if wholes else None
        if outers and (wholes or not self._is_small()):
            whole = self._multiplied()
            self.whole = whole if self.whole is None else self.whole + whole

    def squared_norms(self) -> Tensor:
        """The squared norm of each sample's gradient: ``(batch,)``."""
        if self.whole is not None:
            norms: Tensor = torch.linalg.vector_norm(
                _rows(self.whole), dim=1, dtype=_WIDE.get(self.whole.dtype)
            )
            return norms.square()
        a, b = self.products, self.lookups
        parts: list[Tensor] = []
        if a is not None and a.right.shape[2] == 1:
            parts.append((a.left.square().sum((2, 3)) * a.right.square().sum((2, 3))).sum(1))
        elif a is not None:
            parts.append((_gram(a.left) * _gram(a.right)).sum((1, 2, 3)))
        if b is not None:
            same = b.left.unsqueeze(1) == b.left.unsqueeze(2)
            parts.append((_gram(b.right)[:, 0] * same).sum((1, 2)))
        if a is not None and b is not None:
            rows = b.left.unsqueeze(1).expand(-1, a.left.shape[2], -1)
            products = a.right[:, 0].double() @ b.right[:, 0].double().mT
            parts.append(2 * (a.left[:, 0].gather(2, rows) * products).sum((1, 2)))
        return sum(parts[1:], parts[0]).clamp(min=0)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """The sum of the gradients, each times the weight of its sample, ``(batch,)``."""
        if self.whole is not None:
            return (weights.to(self.whole) @ _rows(self.whole)).view(self.shape)
        parts: list[Tensor] = []
        if self.products is not None:
            left, right = self.products.left, self.products.right
            by = weights.to(left).view(-1, 1, 1, 1)
            if left.shape[3] <= right.shape[3]:
                left = left * by
            else:
                right = right * by
            product = _all_positions(left).mT @ _all_positions(right)
            parts.append(product.reshape(self.shape))
        if self.lookups is not None:
            rows, right = self.lookups.left, self.lookups.right[:, 0]
            scaled = right * weights.to(right).view(-1, 1, 1)
            table = parts.pop() if parts else right.new_zeros(self.shape)
            parts.append(table.index_add(0, rows.flatten(), scaled.flatten(0, 1)))
        return parts[0]

    def _is_small(self) -> bool:
        """Whether the matrices of inner products cost less than the gradients.

        ``2 * T * (p + q) <= p * q`` compares the multiplications, those of doubles twice, and
        bounds the memory too. A lookup multiplies nothing, and its table is large: there memory
        decides.
        """
        factors = [outer for outer in (self.products, self.lookups) if outer is not None]
        positions = sum([outer.right.shape[2] for outer in factors])
        if positions > 1 and factors[0].right.device.type == "mps":  # it has no float64
            return False
        q = factors[0].right.shape[3]
        if self.lookups is not None:
            return positions * positions <= self.shape[0] * q
        p = factors[0].left.shape[3]
        return positions == 1 or 2 * positions * (p + q) <= p * q

    def _multiplied(self) -> Tensor:
        """The gradients themselves: ``(batch, *shape)``."""
        parts: list[Tensor] = []
        if self.products is not None:
            product = self.products.left.mT @ self.products.right
            parts.append(product.reshape(product.shape[0], *self.shape))
        if self.lookups is not None:
            rows, right = self.lookups.left, self.lookups.right[:, 0]
            zeros = right.new_zeros(rows.shape[0], *self.shape)
            parts.append(zeros.scatter_add(1, rows.unsqueeze(2).expand(right.shape), right))
        return sum(parts[1:], parts[0])


def _rows(whole: Tensor) -> Tensor:
    """One row for each sample."""
    return whole.flatten(1) if whole.dim() > 1 else whole.unsqueeze(1)


def _joined(outers: Sequence[Outer]) -> Outer | None:
    """One use in place of several: their positions, one after the other."""
    if len(outers) < 2:
        return outers[0] if outers else None
    dim = 1 if outers[0].is_lookup else 2
    left = torch.cat([outer.left for outer in outers], dim)
    return Outer(left, torch.cat([outer.right for outer in outers], 2))


def _gram(factor: Tensor) -> Tensor:
    """The inner products of all pairs of positions.

    In double precision: where gradients of positions cancel each other, the sum of the products
    would lose in single precision half of the digits that the gradient itself has.
    """
    factor = factor.double()
    return factor @ factor.mT


def _all_positions(factor: Tensor) -> Tensor:
    """``(groups, batch * T, n)``."""
    return factor.transpose(0, 1).flatten(1, 2)
