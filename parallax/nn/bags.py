"""``EmbeddingBag``: tables of vectors whose rows are looked up and reduced in bags."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags
from parallax.nn.arguments import one_of
from parallax.nn.bagging import REDUCTIONS, bagged, bags_watched
from parallax.nn.embedding import Table
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most
from parallax.nn.refusal import name_in, refuse, where

__all__ = ["EmbeddingBag"]


class EmbeddingBag(Table):
    """A table of vectors; of each bag of indices the sum, mean or maximum of their rows.

    Args:
        max_norm: longer rows are scaled to this norm first. Unlike in torch, the table itself is
            not changed. Gradients are those of the rows before scaling.
        scale_grad_by_freq: whether gradients are divided by how often a row is looked up; not in
            mode ``"max"``.
        mode: ``"sum"``, ``"mean"`` or ``"max"``; the field is ``reduction``.
        sparse: whether the gradient of the table is a sparse tensor; not in mode ``"max"``.
        include_last_offset: whether the last offset is the end of the last bag.
        padding_idx: a row that is left out of every bag, gets no gradient and is initially zero.

    Shape:
        - input: ``(B, N)``, B bags of N indices each; or ``(N,)``, with offsets
        - offsets: ``(B,)``, where each bag of a one-dimensional input starts
        - per_sample_weights: as the input; what each row is multiplied with, for ``"sum"`` only
        - output: ``(B, embedding_dim)``

    Raises:
        ValueError: if an argument is out of range, or an input is of another shape.

    Example:
        >>> nn.EmbeddingBag(10, 3, mode="sum").initialize(0)(torch.tensor([[1, 2], [9, 1]])).shape
        torch.Size([2, 3])
    """

    reduction: str
    include_last_offset: bool

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq,
            sparse, dtype,
        )  # fmt: skip
        check_flags("EmbeddingBag", include_last_offset=include_last_offset)
        self.reduction = one_of("EmbeddingBag", "mode", mode, *REDUCTIONS)
        if mode == "max" and (sparse or scale_grad_by_freq):
            which = "sparse" if sparse else "scale_grad_by_freq"
            raise ValueError(f"EmbeddingBag({which}=): must be False for mode='max'")
        self.include_last_offset = include_last_offset

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> Self:
        """A table of given vectors.

        Args:
            embeddings: of shape ``(num_embeddings, embedding_dim)``; shared, not copied.
            freeze: whether the table is left out of training.
            max_norm: as at construction, and so is the rest.
            norm_type: of which norm.
            scale_grad_by_freq: whether gradients are divided by frequency.
            mode: ``"sum"``, ``"mean"`` or ``"max"``.
            sparse: whether the gradient is sparse.
            include_last_offset: whether the last offset is the end of the last bag.
            padding_idx: as at construction, but the row stays as it is.

        Returns:
            The layer.

        Raises:
            ValueError: if the vectors are no matrix.

        Example:
            >>> import torch
            >>> from parallax import nn
            >>> nn.EmbeddingBag.from_pretrained(torch.eye(2))(torch.tensor([[0, 1]]))
            tensor([[0.5000, 0.5000]])
        """
        return cls._of(
            embeddings,
            freeze,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
        )

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """The sum, the mean or the maximum of the rows of each bag."""
        weight = self.weight if self.max_norm is None else self._within_norm(self.weight)
        try:
            plain = in_plain_eager_code()
            alone = plain or one_derivative_at_most(weight, per_sample_weights, forward=False)
            if not alone and isinstance(input, Tensor):
                return self._by_operators(weight, input, offsets, per_sample_weights)
            out = self._by_kernel(weight, input, offsets, per_sample_weights)
            return bags_watched(out) if plain else out
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(input, error)
            self._refuse_bags(input, offsets, per_sample_weights)
            name_in(error, self)
            raise

    def _by_operators(
        self, weight: Tensor, input: Tensor, offsets: Any, factors: Tensor | None
    ) -> Tensor:
        self._refuse_bags(input, offsets, factors)
        if offsets is None:
            offsets = torch.arange(0, input.numel(), input.shape[1], device=input.device)
        elif self.include_last_offset:
            offsets = offsets[:-1]
        factors = None if factors is None else factors.reshape(-1)
        mode, padding = REDUCTIONS[self.reduction], self.padding_idx
        indices = input.reshape(-1)
        return bagged(weight, indices, offsets, mode, factors, padding, self.scale_grad_by_freq)

    def _by_kernel(
        self, weight: Tensor, input: Tensor, offsets: Any, factors: Tensor | None
    ) -> Tensor:
        if offsets is None and factors is None and input.dim() == 2:
            # As F.embedding_bag, without its argument checks.
            size = input.shape[1]
            starts = torch.arange(0, input.numel(), size, dtype=input.dtype, device=input.device)
            return torch.embedding_bag(
                weight, input.reshape(-1), starts, self.scale_grad_by_freq,
                REDUCTIONS[self.reduction], self.sparse, None, False, self.padding_idx,
            )[0]  # fmt: skip
        return F.embedding_bag(
            input, weight, offsets, None, 2.0, self.scale_grad_by_freq, self.reduction,
            self.sparse, factors, self.include_last_offset, self.padding_idx,
        )  # fmt: skip

    def _refuse_bags(self, input: Tensor, offsets: Any, weights: Any) -> None:
        """Raises if offsets are missing, or the number of weights is not that of indices."""
        if weights is not None and self.reduction != "sum":
            raise ValueError(
                f"{where(self)}: per_sample_weights need mode='sum', not mode='{self.reduction}'"
            )
        if input.dim() == 1 and not (isinstance(offsets, Tensor) and offsets.dim() == 1):
            refuse(self, "(B,) beside an input of shape (N,)", offsets, "offsets")
        if input.dim() == 2 and offsets is not None:
            raise ValueError(f"{where(self)}: an input of shape (B, N) takes no offsets")
        if input.dim() not in (1, 2) or not input.shape[-1]:
            refuse(self, "(B, N), or (N,) with offsets", input)
        if isinstance(weights, Tensor) and weights.shape != input.shape:
            refuse(self, f"{tuple(input.shape)}", weights, "per_sample_weights")

    def extra_repr(self) -> str:
        """The arguments that are not torch's defaults, as torch shows them."""
        shown = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.max_norm is not None:
            shown += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            shown += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            shown += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        shown += f", mode={self.reduction!r}"
        return shown + (f", padding_idx={self.padding_idx}" if self.padding_idx is not None else "")
