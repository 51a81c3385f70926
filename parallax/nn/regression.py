"""Losses of numbers against numbers, and of the parameters of distributions."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import shards
from parallax._errors.arguments import check_flags
from parallax.nn.arguments import between, one_of
from parallax.nn.exactness import in_plain_eager_code
from parallax.nn.loss import Loss, Pointwise, compared, reduced, refuse_shapes
from parallax.nn.refusal import name_in, require_tensor, where

__all__ = ["GaussianNLLLoss", "HuberLoss", "KLDivLoss", "L1Loss", "MSELoss", "PoissonNLLLoss",
           "SmoothL1Loss"]  # fmt: skip


class L1Loss(Pointwise, init=False):
    r"""The absolute differences: :math:`|x - y|`.

    Example:
        >>> nn.L1Loss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(1.)
    """

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class MSELoss(Pointwise, init=False):
    r"""The squared differences: :math:`(x - y)^2`.

    Example:
        >>> nn.MSELoss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(2.)
    """

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(Pointwise):
    r"""Squares of small differences, and the absolute values of large ones.

    :math:`(x - y)^2 / 2 \beta` if :math:`|x - y| < \beta`, otherwise :math:`|x - y| - \beta / 2`.

    Args:
        beta: where the one becomes the other.

    Source: R. Girshick, "Fast R-CNN", ICCV 2015.

    Example:
        >>> nn.SmoothL1Loss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(0.7500)
    """

    beta: float

    def __init__(self, *, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction=reduction)
        between("SmoothL1Loss", 0, beta=beta)
        self.beta = beta

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(Pointwise):
    r"""Squares of small differences, and a line for large ones: ``SmoothL1Loss``, times delta.

    :math:`(x - y)^2 / 2` if :math:`|x - y| < \delta`, otherwise
    :math:`\delta (|x - y| - \delta / 2)`.

    Args:
        delta: where the one becomes the other; positive.

    Source: P. Huber, "Robust Estimation of a Location Parameter", 1964.

    Example:
        >>> nn.HuberLoss()(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]))
        tensor(0.7500)
    """

    delta: float

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction=reduction)
        between("HuberLoss", 0, delta=delta)
        if delta == 0:
            raise ValueError("HuberLoss(delta=): must be positive, got 0. Write delta=1.0")
        self.delta = delta

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class KLDivLoss(Pointwise):
    r"""The Kullback-Leibler divergence of log-probabilities from a target: :math:`y (\log y - x)`.

    ``"batchmean"`` is the divergence of distributions, one in each row; ``"mean"`` divides by the
    number of classes, too, as in torch, which warns of it.

    Args:
        reduction: ``"mean"`` or ``"sum"`` of all numbers, ``"batchmean"``, the sum divided by the
            size of the first dimension, or ``"none"``.
        log_target: whether the target holds log-probabilities, too.

    Shape:
        - input, target: ``(*)``, of one shape; the input holds log-probabilities

    Example:
        >>> target = torch.tensor([[0.5, 0.5]])
        >>> nn.KLDivLoss(reduction="batchmean")(torch.tensor([[0.25, 0.75]]).log(), target)
        tensor(0.1438)
    """

    log_target: bool

    def __init__(self, *, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__()
        choices = ("mean", "sum", "batchmean", "none")
        self.reduction = one_of("KLDivLoss", "reduction", reduction, *choices)
        check_flags("KLDivLoss", log_target=log_target)
        self.log_target = log_target

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        losses = F.kl_div(input, target, reduction="none", log_target=self.log_target)
        if self.reduction == "batchmean":
            return losses.sum() / input.shape[0] if input.dim() else losses
        return reduced(losses, self.reduction)


class PoissonNLLLoss(Loss):
    r"""The negative log-likelihood of counts under Poisson distributions: :math:`e^x - y x`.

    Without the logarithm of the factorial of the target, unless ``full``.

    Args:
        log_input: whether the input holds logarithms of rates; otherwise the rates:
            :math:`x - y \log(x + \epsilon)`.
        full: whether :math:`\log y!` is added by Stirling's formula where the target exceeds one.
        eps: is added to rates before their logarithm.

    Shape:
        - log_input, target: ``(*)``, of one shape
        - output: ``()``, or as the input with ``reduction="none"``

    Example:
        >>> nn.PoissonNLLLoss()(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(0.8591)
    """

    log_input: bool
    full: bool
    eps: float

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        *,
        eps: float = 1e-8,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_flags("PoissonNLLLoss", log_input=log_input, full=full)
        between("PoissonNLLLoss", 0, eps=eps)
        self.log_input = log_input
        self.full = full
        self.eps = eps

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        """The loss of the input, logarithms or rates, against the target."""
        return compared(self, log_input, target)

    def _of(self, input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(
            input, target, self.log_input, self.full, eps=self.eps, reduction=self.reduction
        )


class GaussianNLLLoss(Loss):
    r"""The negative log-likelihood under normal distributions.

    .. math:: (\log \sigma^2 + (x - y)^2 / \sigma^2) / 2

    Variances below ``eps`` count as ``eps``, with the gradient of that. That none is negative is
    checked in eager code outside of transforms, where values can be looked at.

    Args:
        full: whether the constant :math:`\log(2 \pi) / 2` is added.
        eps: the least variance; positive.

    Shape:
        - input, target: ``(N, *)``, of one shape
        - var: as the input, or a size of it 1, or without the last dimension; or a number
        - output: ``()``, or as the input with ``reduction="none"``

    Source: D. Nix, A. Weigend, "Estimating the Mean and Variance of the Target Probability
    Distribution", 1994.

    Example:
        >>> mean, target, var = torch.tensor([[0.0], [2.0], [1.0]])
        >>> nn.GaussianNLLLoss()(mean, target, var)
        tensor(2.)
    """

    full: bool
    eps: float

    def __init__(self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        check_flags("GaussianNLLLoss", full=full)
        between("GaussianNLLLoss", 0, eps=eps)
        self.full = full
        self.eps = eps

    def forward(self, input: Tensor, target: Tensor, var: Tensor | float) -> Tensor:
        """The loss of the mean ``input`` and the variance ``var`` against the target."""
        try:
            if input.shape != target.shape:
                refuse_shapes(self, input, target)
            losses = self._losses(input, target, self._variance(input, var))
        except (AttributeError, RuntimeError, TypeError) as error:
            require_tensor(self, input)
            require_tensor(self, target, "target")
            name_in(error, self)
            raise
        return reduced(losses, self.reduction)

    def _losses(self, input: Tensor, target: Tensor, var: Tensor) -> Tensor:
        # Torch clamps without a graph, so the gradient passes.
        var = torch.where(var < self.eps, var - var.detach() + self.eps, var)
        losses = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
        return losses + 0.5 * math.log(2 * math.pi) if self.full else losses

    def _variance(self, input: Tensor, given: Any) -> Tensor:
        """The variances, in a shape that broadcasts with the input."""
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            dtype = input.dtype if input.is_floating_point() else torch.get_default_dtype()
            given = torch.full((), given, dtype=dtype, device=input.device).expand(input.shape)
        require_tensor(self, given, "var")
        var: Any = given
        negative = int(shards.whole((var < 0).sum())) if in_plain_eager_code() else 0
        if negative:
            raise ValueError(
                f"{where(self)}: var must not be negative, and {negative} of {var.numel()} "
                f"variances are. Give F.softplus(var), or var.exp()"
            )
        pairs = list(zip(input.shape, var.shape, strict=False))
        spread = var.dim() == input.dim() and [two for one, two in pairs if one != two] == [1]
        if var.shape != input.shape and not spread:
            if var.shape != input.shape[:-1] or not input.dim():
                self._refuse_variance(input, var)
            var = var.unsqueeze(-1)
        checked: Tensor = var
        return checked

    def _refuse_variance(self, input: Tensor, var: Tensor) -> NoReturn:
        raise ValueError(
            f"{where(self)}: var must have the shape {tuple(input.shape)} of the input, a size of "
            f"it 1, or {tuple(input.shape[:-1])}, got {tuple(var.shape)}. Give var.expand_as(input)"
        )
