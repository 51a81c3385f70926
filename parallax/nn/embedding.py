"""Tables of vectors, looked up by number."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax import tree
from parallax._compat import dynamo, functorch
from parallax._errors.arguments import check_flags, shown
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import at_least, between, is_int
from parallax.nn.exactness import derived_forward
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, where

__all__ = ["Embedding", "Table"]

_INDICES = (torch.int64, torch.int32)


class Table(Module):
    """What tables of vectors share.

    Args:
        num_embeddings: the number of rows.
        embedding_dim: the size of each.
        norm_type: of which norm.
        dtype: of the table; by default torch's default dtype.

    Raises:
        TypeError: if an argument is of another type, or the input is not a tensor of indices.
        ValueError: if an argument is out of range.
        IndexError: if an index is.
    """

    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    weight: Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        max_norm: float | None,
        norm_type: float,
        scale_grad_by_freq: bool,
        sparse: bool,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        at_least(name, 0, num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        between(name, 0, **({} if max_norm is None else {"max_norm": max_norm}))
        between(name, -inf, norm_type=norm_type)
        check_flags(name, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = _row(name, padding_idx, num_embeddings)
        self.max_norm = max_norm
        self.norm_type = norm_type
        self.scale_grad_by_freq = scale_grad_by_freq
        self.sparse = sparse
        start = partial(_normal_, zeros=self.padding_idx)
        self.weight = Parameter((num_embeddings, embedding_dim), start, dtype=dtype)

    @classmethod
    def _of(cls, embeddings: Any, freeze: bool, **arguments: Any) -> Self:
        """A table of given vectors."""
        if not isinstance(embeddings, Tensor) or embeddings.dim() != 2:
            raise ValueError(
                f"{cls.__name__}.from_pretrained(embeddings): expected a tensor of shape "
                f"(num_embeddings, embedding_dim), got {shown(embeddings)}. "
                f"Give one such as torch.eye(3)"
            )
        check_flags(f"{cls.__name__}.from_pretrained", freeze=freeze)
        rows, columns = embeddings.shape
        table = cls(rows, columns, **arguments).replace(weight=embeddings)
        return tree.select(table, "weight").freeze() if freeze else table

    def _within_norm(self, rows: Tensor) -> Tensor:
        """Vectors no longer than ``max_norm``; gradients are those of the vectors as they were.

        torch writes the shorter vectors into the table. Here the table is not changed, and the
        result is the same.
        """
        flat = rows.detach().reshape(-1, self.embedding_dim)
        if not flat.numel():
            return rows
        short = torch.renorm(flat, self.norm_type, 0, self.max_norm)  # type: ignore[arg-type]  # not None
        return short.reshape(rows.shape) + (rows - rows.detach())

    def _refuse(self, input: Any, error: Exception) -> None:
        """Raises if the input does not consist of indices into the table."""
        if not isinstance(input, Tensor) or input.dtype not in _INDICES:
            came = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(
                f"{where(self)}: input must be a tensor of int64 or int32 indices, got {came}. "
                f"Make one: torch.tensor([0, 2])"
            )
        if isinstance(error, IndexError) or "not in the valid range" in str(error):
            raise IndexError(
                f"{where(self)}: indices must be at least 0 and less than {self.num_embeddings}"
            )


class Embedding(Table):
    """A table of vectors: each index of the input becomes the row of that number.

    Args:
        padding_idx: a row that gets no gradient and is initially zero.
        max_norm: longer rows are returned scaled to this norm. Unlike in torch, the table itself is
            not changed. Gradients are those of the rows before scaling.
        scale_grad_by_freq: whether gradients are divided by how often a row is looked up.
        sparse: whether the gradient of the table is a sparse tensor.

    Shape:
        - input: ``(*)``, of int64 or int32
        - output: ``(*, embedding_dim)``

    Example:
        >>> nn.Embedding(10, 3).initialize(0)(torch.tensor([[1, 2], [9, 1]])).shape
        torch.Size([2, 2, 3])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq,
            sparse, dtype,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Self:
        """A table of given vectors.

        Args:
            embeddings: of shape ``(num_embeddings, embedding_dim)``; shared, not copied.
            freeze: whether the table is left out of training.
            padding_idx: as at construction, but the row stays as it is.
            max_norm: as at construction, and so is the rest.
            norm_type: of which norm.
            scale_grad_by_freq: whether gradients are divided by frequency.
            sparse: whether the gradient is sparse.

        Returns:
            The layer.

        Raises:
            ValueError: if the vectors are not a matrix.

        Example:
            >>> import torch
            >>> from parallax import nn
            >>> nn.Embedding.from_pretrained(torch.eye(2))(torch.tensor(1))
            tensor([0., 1.])
        """
        return cls._of(
            embeddings,
            freeze,
            padding_idx=padding_idx,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
        )

    def forward(self, input: Tensor) -> Tensor:
        """The row of the table for each index."""
        # torch forgets the padding of all batched tables but the first (2.13), and any padding
        # in forward derivatives.
        padding = self.padding_idx
        held = padding is not None and (
            dynamo.is_compiling() or functorch.vmap_active() or derived_forward()
        )
        try:
            rows = F.embedding(
                input, self.weight, None if held else padding, None, 2.0,
                self.scale_grad_by_freq, self.sparse,
            )  # fmt: skip
        except (IndexError, RuntimeError, TypeError) as error:
            self._refuse(input, error)
            name_in(error, self)
            raise
        if held and padding is not None:
            rows = torch.where(torch.eq(input, padding).unsqueeze(-1), rows.detach(), rows)
        return rows if self.max_norm is None else self._within_norm(rows)

    extra_repr = shown_as(torch.nn.Embedding)


def _row(layer: str, index: Any, rows: int) -> int | None:
    """The index of a row, which may be counted from the end."""
    if index is None:
        return None
    if not is_int(index):
        raise TypeError(
            f"{layer}(padding_idx=): expected an int or None, got {shown(index)}. "
            f"Write padding_idx=0"
        )
    if not -rows <= index < rows:
        raise ValueError(
            f"{layer}(padding_idx=): must be within num_embeddings={rows}, got {index}"
        )
    return int(index) % rows


def _normal_(
    tensor: Tensor, generator: torch.Generator | None = None, zeros: int | None = None
) -> Tensor:
    """Standard normal numbers, and zeros in one row."""
    init.normal_(tensor, generator=generator)
    if zeros is not None:
        tensor[zeros] = 0
    return tensor
