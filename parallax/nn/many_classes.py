"""Losses of so many classes that their scores are not computed all, or not all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._errors.arguments import check_flags, shown
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.func.checkpoint import checkpoint
from parallax.nn.arguments import between, integer, is_int, positive
from parallax.nn.containers import Sequential
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.families import shown_as
from parallax.nn.linear import Linear
from parallax.nn.loss import Loss, refuse_target, weights_given
from parallax.nn.precision import HALF, widened
from parallax.nn.refusal import ends_with, name_in, refuse, require_tensor, where

__all__ = ["AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss"]


class LogProbAndLoss(NamedTuple):
    """What ``AdaptiveLogSoftmaxWithLoss`` returns."""

    output: Tensor
    loss: Tensor


class AdaptiveLogSoftmaxWithLoss(Module):
    """An efficient softmax over many classes, of which few are frequent.

    Frequent classes, which have the least numbers, are scored directly. Each cluster of rarer ones
    has one score, and is scored within by smaller and smaller maps: only where the target is in it.
    In transforms and compiled code, where no value decides what is computed, all clusters are.

    Args:
        in_features: the size of the input.
        n_classes: the number of classes.
        cutoffs: where the clusters begin, in increasing order.
        div_value: how much smaller the map of each cluster is than the one before.
        head_bias: whether the scores of frequent classes and clusters have a bias.
        dtype: of the parameters; by default torch's default dtype.

    Shape:
        - input: ``(N, in_features)`` or ``(in_features)``
        - target: ``(N)`` or ``()``
        - output: a pair: ``output``, the log-probability of each target, and ``loss``, minus their
          mean

    Raises:
        TypeError: if an argument is of another type, or an input is not a tensor.
        ValueError: if an argument is out of range, or an input is of another shape.

    Source: E. Grave and others, "Efficient Softmax Approximation for GPUs", ICML 2017.

    Example:
        >>> softmax = nn.AdaptiveLogSoftmaxWithLoss(16, 100, cutoffs=[10, 50]).initialize(0)
        >>> softmax(torch.ones(3, 16), torch.tensor([4, 20, 99])).output.shape
        torch.Size([3])
        >>> softmax.log_prob(torch.ones(3, 16)).exp().sum(-1).round()
        tensor([1., 1., 1.])
        >>> softmax.predict(torch.ones(3, 16)).shape
        torch.Size([3])
    """

    in_features: int
    n_classes: int
    cutoffs: tuple[int, ...]
    div_value: float
    head_bias: bool
    head: Linear
    tail: tuple[Sequential, ...]

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = "AdaptiveLogSoftmaxWithLoss"
        positive(name, in_features=in_features, n_classes=n_classes)
        between(name, 1, div_value=div_value)
        check_flags(name, head_bias=head_bias)
        edges = _edges(name, cutoffs, n_classes)
        self.in_features = in_features
        self.n_classes = n_classes
        self.cutoffs = edges
        self.div_value = div_value
        self.head_bias = head_bias
        self.head = Linear(in_features, edges[0] + len(edges) - 1, head_bias, dtype=dtype)
        tail = []
        for k, (low, high) in enumerate(pairwise(edges)):
            between_maps = int(in_features // div_value ** (k + 1))
            if between_maps < 1:
                raise ValueError(
                    f"{name}(div_value=): nothing is left of in_features={in_features} in cluster "
                    f"{k}, divided by {div_value} ** {k + 1}. Write a smaller div_value, or fewer "
                    f"cutoffs"
                )
            first = Linear(in_features, between_maps, False, dtype=dtype)
            tail.append(Sequential(first, Linear(between_maps, high - low, False, dtype=dtype)))
        self.tail = tuple(tail)

    def forward(self, input: Tensor, target: Tensor) -> LogProbAndLoss:
        """The log-probability of each target, and minus their mean."""
        self._check(input)
        require_tensor(self, target, "target")
        refuse_target(self, input, target, tuple(input.shape[:-1]))
        rows, classes = (input, target) if input.dim() == 2 else (input[None], target[None])
        plain = in_plain_eager_code()
        output = self._of_present(rows, classes) if plain else self._of_all(rows, classes)
        return LogProbAndLoss(output if input.dim() == 2 else output[0], -output.mean())

    def log_prob(self, input: Tensor) -> Tensor:
        """The log-probability of every class.

        Args:
            input: of shape ``(N, in_features)``, or without ``N``.

        Returns:
            Of shape ``(N, n_classes)``, or without ``N``.
        """
        self._check(input)
        head = self.head(input).log_softmax(-1)
        first = self.cutoffs[0]
        parts = [head[..., :first]]
        for k, cluster in enumerate(self.tail):
            parts.append(cluster(input).log_softmax(-1) + head[..., first + k, None])
        return torch.cat(parts, -1)

    def predict(self, input: Tensor) -> Tensor:
        """The class with the highest probability, of each row.

        Args:
            input: of shape ``(N, in_features)``, or without ``N``.

        Returns:
            Of shape ``(N)``, or ``()``.
        """
        return self.log_prob(input).argmax(-1)

    def _of_present(self, input: Tensor, target: Tensor) -> Tensor:
        """The log-probabilities of targets; each cluster is computed for the rows it is in."""
        least, most = (int(x) for x in target.aminmax()) if target.numel() else (0, 0)
        if least < 0 or most >= self.n_classes:
            remedy = "Leave negative ones out" if least < 0 else f"Give n_classes={most + 1}"
            raise ValueError(
                f"{where(self)}: expected targets from 0 to {self.n_classes - 1}, got some from "
                f"{least} to {most}. {remedy}"
            )
        first = self.cutoffs[0]
        place, found = target, torch.zeros_like(input[:, 0])
        for k, cluster in enumerate(self.tail):
            low, high = self.cutoffs[k : k + 2]
            rows = ((target >= low) & (target < high)).nonzero()[:, 0]
            if len(rows):
                inner = cluster(input[rows]).log_softmax(-1)
                own = inner.gather(1, (target[rows] - low)[:, None])[:, 0]
                found = found.index_add(0, rows, own)
                place = place.index_fill(0, rows, first + k)
        return found + self.head(input).log_softmax(-1).gather(1, place[:, None])[:, 0]

    def _of_all(self, input: Tensor, target: Tensor) -> Tensor:
        """The log-probabilities of targets, where no value is known; NaN of those out of range."""
        inside = (target >= 0) & (target < self.n_classes)
        own = torch.where(inside, target, 0)[:, None]
        found = self.log_prob(input).gather(1, own)[:, 0]
        return torch.where(inside, found, math.nan)

    def _check(self, input: Any) -> None:
        if not ends_with(input, self.in_features) or input.dim() > 2:
            refuse(self, f"(N, {self.in_features}) or ({self.in_features})", input)

    extra_repr = shown_as(torch.nn.Module)


def _edges(name: str, cutoffs: Any, n_classes: int) -> tuple[int, ...]:
    """The cutoffs and the number of classes, in increasing order."""
    write = "Write cutoffs=[10, 100]"
    if not isinstance(cutoffs, Sequence) or not all(map(is_int, cutoffs)) or not cutoffs:
        raise TypeError(f"{name}(cutoffs=): expected some ints, got {shown(cutoffs)}. {write}")
    found = (0, *cutoffs, n_classes)
    if any([low >= high for low, high in pairwise(found)]):
        raise ValueError(
            f"{name}(cutoffs=): must increase, and be between 1 and n_classes - 1 = "
            f"{n_classes - 1}, got {shown(cutoffs)}. {write}"
        )
    return found[1:]


class LinearCrossEntropyLoss(Loss):
    r"""The cross-entropy of an affine map of the input: ``Linear`` and ``CrossEntropyLoss``.

    With ``chunk_size`` the scores of so many rows are computed at a time, and once more for the
    derivative, so that those of all rows are never in memory together. Its derivatives are right
    at any order and in any transform, which is why there are no ``options`` of torch's kernel here.

    Args:
        in_features: the size of the input.
        num_classes: the number of classes, C.
        out_features: the sizes of further dimensions of the scores, after that of the classes.
        bias: whether the map adds a bias.
        weight: a factor for each class, ``(C,)``; a buffer, so it is not trained.
        ignore_index: a class that does not count; by default -100.
        label_smoothing: the share of each target that is divided equally among all classes.
        chunk_size: how many rows are computed at a time; by default all.
        dtype: of the parameters; by default torch's default dtype.

    Shape:
        - input: ``(N, in_features)`` or ``(in_features)``
        - target: classes, ``(N, *out_features)`` or ``()``; or shares,
          ``(N, C, *out_features)`` or ``(C)``
        - output: ``()``, or as classes with ``reduction="none"``

    Example:
        >>> loss = nn.LinearCrossEntropyLoss(8, 1000, chunk_size=64).initialize(0)
        >>> loss(torch.ones(256, 8), torch.arange(256)).shape
        torch.Size([])
    """

    num_classes: int
    out_features: tuple[int, ...]
    weight: Buffer | None
    ignore_index: int | None
    label_smoothing: float
    chunk_size: int | None
    linear: Linear

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        name = "LinearCrossEntropyLoss"
        positive(name, in_features=in_features, num_classes=num_classes)
        between(name, 0, 1, label_smoothing=label_smoothing)
        check_flags(name, bias=bias)
        if ignore_index is not None:
            integer(name, ignore_index=ignore_index)
        if chunk_size is not None:
            positive(name, chunk_size=chunk_size)
        sizes: Any = out_features
        if not isinstance(sizes, (tuple, list)) or not all(map(is_int, sizes)) or 0 in sizes:
            raise TypeError(
                f"{name}(out_features=): expected a tuple of ints, got {shown(sizes)}. "
                f"Write out_features=(2,)"
            )
        self.weight = weights_given(name, "weight", weight)
        if weight is not None and len(weight) != num_classes:
            raise ValueError(
                f"{name}(weight=): expected a number for each of {num_classes} classes, got "
                f"{len(weight)}. Write weight=torch.ones({num_classes})"
            )
        self.num_classes = num_classes
        self.out_features = tuple(sizes)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.chunk_size = chunk_size
        self.linear = Linear(in_features, math.prod(sizes, start=num_classes), bias, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The cross-entropy of the mapped input against the target."""
        self._check(input, target)
        try:
            return self._loss(input, target)
        except (IndexError, RuntimeError) as error:
            name_in(error, self)
            raise

    def _loss(self, input: Tensor, target: Tensor) -> Tensor:
        size, how = self.chunk_size, self.reduction
        if size is None or input.dim() == 1 or len(input) <= size:
            return self._of_rows(self.linear, input, target, how)
        rows = checkpoint(self._of_rows)
        pairs = zip(input.split(size), target.split(size), strict=True)
        low = self.linear.weight.dtype in HALF  # the sums of chunks would be rounded
        each = "none" if how == "none" or low else "sum"
        parts = [rows(self.linear, some, wanted, each) for some, wanted in pairs]
        if how == "none":
            return torch.cat(parts)
        total = torch.stack([widened(part).sum() for part in parts]).sum()
        if how == "mean":
            total = total / self._count(target)
        return total.to(parts[0].dtype)

    def _of_rows(self, linear: Any, input: Tensor, target: Tensor, how: str) -> Tensor:
        scores = linear(input)
        if self.out_features:
            scores = scores.reshape(-1, self.num_classes, *self.out_features)
        return F.cross_entropy(
            scores, target, self.weight, ignore_index=self._ignored(), reduction=how,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip

    def _ignored(self) -> int:
        return -100 if self.ignore_index is None else self.ignore_index

    def _count(self, target: Tensor) -> Tensor | int:
        """What the sum is divided by for the mean."""
        if target.is_floating_point():
            return target.numel() // self.num_classes
        counted = target != self._ignored()
        if self.weight is None:
            return counted.sum()
        return (widened(self.weight)[torch.where(counted, target, 0)] * counted).sum()

    def _check(self, input: Any, target: Any) -> None:
        size, further = self.linear.in_features, self.out_features
        if not ends_with(input, size) or input.dim() not in ((2,) if further else (1, 2)):
            refuse(self, f"(N, {size})" + ("" if further else f" or ({size})"), input)
        require_tensor(self, target, "target")
        batch = input.shape[:-1]
        if target.is_floating_point():
            wanted = (*batch, self.num_classes, *further)
            if tuple(target.shape) != wanted:
                raise ValueError(
                    f"{where(self)}: expected a target of shares of shape {wanted}, got "
                    f"{tuple(target.shape)}. Give target.reshape({wanted})"
                )
            if self.ignore_index is not None:
                raise ValueError(
                    f"{where(self)}: ignore_index={self.ignore_index} is a class, and the target "
                    f"holds shares. Leave ignore_index out"
                )
        else:
            refuse_target(self, input, target, (*batch, *further))

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        chunks = "" if self.chunk_size is None else f", chunk_size={self.chunk_size}"
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, options=None{chunks}"
        )
