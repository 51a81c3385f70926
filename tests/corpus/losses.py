"""Losses and other functions of ``torch.nn.functional`` that no layer is named after.

Each takes one tensor of five rows of four numbers to a number or to several. What else it needs has
the dtype of that tensor. ``gaussian_nll_loss`` is not among them: it looks at values, which no
transform allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FUNCTIONS", "ONCE", "rows"]


def rows(seed: int = 0) -> Tensor:
    """Five rows of four numbers."""
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OTHER = rows(1)
CLASSES = torch.tensor([0, 3, 1, 2, 2])
SEVERAL = torch.tensor([[0, 2, -1, 1], [3, -1, 0, 0], [1, 2, 3, -1], [2, -1, 0, 0], [0, 1, -1, 2]])
SIGNS = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
EACH = torch.tensor([[1.0, -1.0, -1.0, 1.0]]).expand(5, 4)
LETTERS = torch.tensor([[1, 2]])


def like(x: Tensor) -> Tensor:
    """Other rows, in the dtype of ``x``."""
    return OTHER.to(x.dtype)


def weights(x: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, 4, dtype=x.dtype)


def shares(x: Tensor) -> Tensor:
    return like(x).softmax(-1)


def ctc(x: Tensor) -> Tensor:
    lengths = torch.tensor([5]), torch.tensor([2])
    return F.ctc_loss(x.log_softmax(-1)[:, None], LETTERS, *lengths)


FUNCTIONS: dict[str, Callable[[Tensor], Any]] = {
    "l1_loss": lambda x: F.l1_loss(x, like(x)),
    "mse_loss": lambda x: F.mse_loss(x, like(x)),
    "mse_loss sum": lambda x: F.mse_loss(x, like(x), reduction="sum"),
    "mse_loss none": lambda x: F.mse_loss(x, like(x), reduction="none"),
    "mse_loss of both": lambda x: F.mse_loss(x, x.sin()),
    "smooth_l1_loss": lambda x: F.smooth_l1_loss(x, like(x), beta=0.7),
    "huber_loss": lambda x: F.huber_loss(x, like(x), delta=0.7),
    "cross_entropy": lambda x: F.cross_entropy(x, CLASSES),
    "cross_entropy weighed": lambda x: F.cross_entropy(x, CLASSES, weights(x), ignore_index=1),
    "cross_entropy smoothed": lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.2),
    "cross_entropy shares": lambda x: F.cross_entropy(x, shares(x)),
    "nll_loss": lambda x: F.nll_loss(x.log_softmax(-1), CLASSES),
    "kl_div": lambda x: F.kl_div(x.log_softmax(-1), shares(x), reduction="batchmean"),
    "kl_div log": lambda x: F.kl_div(
        x.log_softmax(-1), shares(x).log(), reduction="sum", log_target=True
    ),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), like(x).sigmoid()),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(
        x, like(x).sigmoid(), pos_weight=weights(x)
    ),
    "poisson_nll_loss": lambda x: F.poisson_nll_loss(x, like(x).exp(), full=True),
    "hinge_embedding_loss": lambda x: F.hinge_embedding_loss(x, EACH.to(x.dtype)),
    "margin_ranking_loss": lambda x: F.margin_ranking_loss(x[:, 0], x[:, 1], SIGNS.to(x.dtype)),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, EACH.to(x.dtype)),
    "multi_margin_loss": lambda x: F.multi_margin_loss(x, CLASSES),
    "multilabel_margin_loss": lambda x: F.multilabel_margin_loss(x, SEVERAL),
    "multilabel_soft_margin_loss": lambda x: F.multilabel_soft_margin_loss(
        x, like(x).sigmoid(), weights(x)
    ),
    "cosine_embedding_loss": lambda x: F.cosine_embedding_loss(x, like(x), SIGNS.to(x.dtype)),
    "triplet_margin_loss": lambda x: F.triplet_margin_loss(x, like(x), x.sin()),
    "triplet_margin_with_distance_loss": lambda x: F.triplet_margin_with_distance_loss(
        x, like(x), x.sin(), distance_function=lambda a, b: (a - b).square().sum(-1)
    ),
    "ctc_loss": ctc,
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine_similarity": lambda x: F.cosine_similarity(x, like(x)),
    "pairwise_distance": lambda x: F.pairwise_distance(x, like(x)),
    "softmin": lambda x: F.softmin(x, -1),
    "one_hot mixture": lambda x: F.one_hot(CLASSES, 4).to(x.dtype) * x.exp(),
}

ONCE = ("ctc_loss", "multi_margin_loss", "multilabel_margin_loss")
"""Torch has a first derivative of these only, by reverse mode, and says so where more are taken."""
