"""Losses of torch by operators, as in ``formulas``.

Torch has no derivative by the weights of classes, nor by a target of signs. In reverse mode it
says so; a forward derivative leaves the part out without an error. The third derivatives of
``cosine_embedding_loss`` are wrong; the gradient of a forward derivative of that of ``mse_loss``
raises.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax.func.other import AsItIsError, Other

__all__ = ["LOSSES", "cosine_embedding"]


def cosine_embedding(one: Tensor, two: Tensor, target: Tensor, margin: float) -> Tensor:
    """The losses of pairs, one by one: ``F.cosine_embedding_loss`` that is not reduced."""
    products = [(x * y).sum(-1) for x, y in ((one, two), (one, one), (two, two))]
    eps = 1e-12  # as torch
    cosine = products[0] / ((products[1] + eps) * (products[2] + eps)).sqrt()
    apart = torch.where(target == -1, (cosine - margin).clamp(min=0), 0)
    return torch.where(target == 1, 1 - cosine, apart)


def _cosine_embedding_loss(
    function: Any, input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0,
    size_average: Any = None, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    fits = input1.shape == input2.shape and target.shape == input1.shape[:-1]
    if not fits or input1.dim() not in (1, 2):
        raise AsItIsError
    return _reduced(
        cosine_embedding(input1, input2, target, margin), size_average, reduce, reduction
    )


def _mse_loss(
    function: Any, x: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean", weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if weight is not None or x.shape != target.shape:
        raise AsItIsError
    apart = x - target
    return _reduced(apart * apart, size_average, reduce, reduction)


def _soft_margin_loss(
    function: Any, x: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    # From the threshold on it is its argument, to the last digit. Within vmap logsigmoid warns.
    return _reduced(F.softplus(-x * target, threshold=40), size_average, reduce, reduction)


def _binary_cross_entropy(
    function: Any, x: Tensor, target: Tensor, weight: Tensor | None = None,
    size_average: Any = None, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    if weight is None:
        raise AsItIsError
    losses = function(x, target, reduction="none") * weight
    return _reduced(losses, size_average, reduce, reduction)


def _nll_loss(
    function: Any, x: Tensor, target: Tensor, weight: Tensor | None = None,
    size_average: Any = None, ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    if weight is None or target.is_floating_point():
        raise AsItIsError
    losses, factors = _of_classes(x, target, weight, ignore_index)
    return _weighted(losses, factors, size_average, reduce, reduction)


def _cross_entropy(
    function: Any, x: Tensor, target: Tensor, weight: Tensor | None = None,
    size_average: Any = None, ignore_index: int = -100, reduce: Any = None,
    reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    if weight is None or target.is_floating_point():
        raise AsItIsError  # torch composes the loss of probabilities
    dim = min(1, x.dim() - 1)
    scores = x.log_softmax(dim)
    losses, factors = _of_classes(scores, target, weight, ignore_index)
    if label_smoothing:
        column = [-1 if d == dim else 1 for d in range(x.dim())]
        smooth = -(scores * weight.reshape(column)).sum(dim)
        smooth = torch.where(target == ignore_index, 0, smooth)
        losses = (1 - label_smoothing) * losses + label_smoothing / x.shape[dim] * smooth
    return _weighted(losses, factors, size_average, reduce, reduction)


def _linear_cross_entropy(
    function: Any, x: Tensor, linear_weight: Tensor, target: Tensor, *,
    linear_bias: Tensor | None = None, weight: Tensor | None = None, reduction: str = "mean",
    ignore_index: int | None = None, label_smoothing: float = 0.0, options: Any = None,
) -> Tensor:  # fmt: skip
    if weight is None or options is not None or linear_weight.dim() != 2 or x.dim() > 2:
        raise AsItIsError
    found: Tensor = F.cross_entropy(
        F.linear(x, linear_weight, linear_bias), target, weight,
        ignore_index=-100 if ignore_index is None else ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip
    return found


def _of_classes(
    scores: Tensor, target: Tensor, weight: Tensor, ignored: int
) -> tuple[Tensor, Tensor]:
    """The weighted loss of each example, and the weight."""
    dim = min(1, scores.dim() - 1)
    kept = target != ignored
    own = torch.where(kept, target, 0)
    factors = torch.where(kept, weight[own], 0)
    chosen = scores.gather(dim, own.unsqueeze(dim)).squeeze(dim)
    return -torch.where(kept, chosen, 0) * factors, factors


def _weighted(
    losses: Tensor, factors: Tensor, size_average: Any, reduce: Any, reduction: str
) -> Tensor:
    if size_average is not None or reduce is not None:
        raise AsItIsError
    return losses.sum() / factors.sum() if reduction == "mean" else _of_all(losses, reduction)


def _reduced(losses: Tensor, size_average: Any, reduce: Any, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        raise AsItIsError
    return losses.mean() if reduction == "mean" else _of_all(losses, reduction)


def _of_all(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("sum", "none"):
        raise AsItIsError  # of which torch says what is wrong
    return losses.sum() if reduction == "sum" else losses


_OPTIONS = frozenset({"size_average", "reduce", "reduction"})
_CLASSES = frozenset({*_OPTIONS, "weight", "ignore_index", "label_smoothing"})
_PAIR = ("input", "target")
_BY_WEIGHT = ((2, "weight"),)

_FUSED = getattr(F, "linear_cross_entropy", None)  # not in every release
_LINEAR = Other(
    _linear_cross_entropy, ("input", "linear_weight", "target"),
    _CLASSES | {"linear_bias", "options"}, constants=((-1, "weight"),), within=True,
)  # fmt: skip

LOSSES: dict[Any, Other] = {
    **({} if _FUSED is None else {_FUSED: _LINEAR}),
    F.nll_loss: Other(_nll_loss, _PAIR, _CLASSES, constants=_BY_WEIGHT),
    F.cross_entropy: Other(_cross_entropy, _PAIR, _CLASSES, constants=_BY_WEIGHT),
    F.binary_cross_entropy: Other(
        _binary_cross_entropy, _PAIR, _OPTIONS | {"weight"}, constants=_BY_WEIGHT
    ),
    F.mse_loss: Other(_mse_loss, _PAIR, _OPTIONS | {"weight"}),
    F.soft_margin_loss: Other(_soft_margin_loss, _PAIR, _OPTIONS, constants=((1, "target"),)),
    F.cosine_embedding_loss: Other(
        _cosine_embedding_loss, ("input1", "input2", "target"), _OPTIONS | {"margin"}
    ),
}
"""What is computed in place of which loss."""
