"""Activations that keep positive numbers, and replace the others."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.init import constant_

from parallax import random
from parallax._compat.shards import beside
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import between, positive
from parallax.nn.elementwise import Elementwise
from parallax.nn.families import shown_as
from parallax.nn.refusal import refuse, require_tensor

__all__ = ["CELU", "ELU", "SELU", "LeakyReLU", "PReLU", "RReLU", "ReLU", "ReLU6", "Threshold"]


class ReLU(Elementwise):
    r"""The larger of each number and zero: :math:`\max(0, x)`.

    Source: V. Nair, G. Hinton, "Rectified Linear Units Improve RBMs", ICML 2010.

    Example:
        >>> nn.ReLU()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0., 0., 2.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The larger of each number and zero."""
        try:
            return torch.relu(input)
        except TypeError:
            require_tensor(self, input)
            raise


class ReLU6(Elementwise):
    r"""Each number clipped to between zero and six: :math:`\min(\max(0, x), 6)`.

    Source: A. Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10", 2010.

    Example:
        >>> nn.ReLU6()(torch.tensor([-2.0, 2.0, 7.0]))
        tensor([0., 2., 6.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each number, clipped to between zero and six."""
        try:
            return F.relu6(input)
        except TypeError:
            require_tensor(self, input)
            raise


class LeakyReLU(Elementwise):
    """Positive numbers as they are, the others times a small slope.

    Args:
        negative_slope: what numbers below zero are multiplied with.

    Source: A. Maas and others, "Rectifier Nonlinearities", ICML 2013.

    Example:
        >>> nn.LeakyReLU(0.5)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.,  0.,  2.])
    """

    negative_slope: float

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        between("LeakyReLU", -inf, negative_slope=negative_slope)
        self.negative_slope = negative_slope

    def forward(self, input: Tensor) -> Tensor:
        """Each positive number, and the others times the slope."""
        try:
            return F.leaky_relu(input, self.negative_slope)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.LeakyReLU)


class ELU(Elementwise):
    r"""Positive numbers as they are, the others :math:`\alpha (e^x - 1)`.

    Args:
        alpha: minus the limit for very negative numbers.

    Source: D. Clevert and others, "Fast and Accurate Deep Network Learning by ELUs", 2016.

    Example:
        >>> nn.ELU()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.8647,  0.0000,  2.0000])
    """

    alpha: float

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        between("ELU", -inf, alpha=alpha)
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        """Each positive number, and the ELU of the others."""
        try:
            return F.elu(input, self.alpha)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.ELU)


class CELU(Elementwise):
    r"""Positive numbers as they are, the others :math:`\alpha (e^{x / \alpha} - 1)`.

    Args:
        alpha: minus the limit for very negative numbers.

    Raises:
        ValueError: if alpha is 0.

    Source: J. Barron, "Continuously Differentiable Exponential Linear Units", 2017.

    Example:
        >>> nn.CELU(2.0)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.2642,  0.0000,  2.0000])
    """

    alpha: float

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        between("CELU", -inf, alpha=alpha)
        if alpha == 0:
            raise ValueError("CELU(alpha=): must not be 0")
        self.alpha = alpha

    def forward(self, input: Tensor) -> Tensor:
        """Each positive number, and the CELU of the others."""
        try:
            return F.celu(input, self.alpha)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.CELU)


class SELU(Elementwise):
    r"""A scaled ``ELU`` that keeps mean zero and variance one from layer to layer.

    :math:`s \cdot (\max(0, x) + \min(0, \alpha (e^x - 1)))` with :math:`s = 1.0507...` and
    :math:`\alpha = 1.6732...`

    Source: G. Klambauer and others, "Self-Normalizing Neural Networks", 2017.

    Example:
        >>> nn.SELU()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.5202,  0.0000,  2.1014])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The SELU of each number."""
        try:
            return F.selu(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Threshold(Elementwise):
    """Numbers above a threshold as they are, and a fixed value in place of the others.

    Args:
        threshold: numbers above it are kept.
        value: replaces the others.

    Example:
        >>> nn.Threshold(1.0, -9.0)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-9., -9.,  2.])
    """

    threshold: float
    value: float

    def __init__(self, threshold: float, value: float) -> None:
        super().__init__()
        between("Threshold", -inf, threshold=threshold, value=value)
        self.threshold = threshold
        self.value = value

    def forward(self, input: Tensor) -> Tensor:
        """Each number above the threshold, and the value in place of the others."""
        try:
            return F.threshold(input, self.threshold, self.value)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.Threshold)


class PReLU(Module):
    """Positive numbers as they are, the others times a slope that is learned.

    Args:
        num_parameters: 1 for one slope, or the number of channels for a slope of each.
        init: the initial value of the slopes.
        dtype: of the slopes; by default torch's default dtype.

    Shape:
        - input: ``(*)``; with a slope for each channel ``(N, num_parameters, *)``
        - output: the same

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if there is no parameter, or the input has another number of channels.

    Source: K. He and others, "Delving Deep into Rectifiers", 2015.

    Example:
        >>> nn.PReLU().initialize(0)(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.5000,  0.0000,  2.0000])
    """

    num_parameters: int
    init: float
    weight: Parameter

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        positive("PReLU", num_parameters=num_parameters)
        between("PReLU", -inf, init=init)
        self.num_parameters = num_parameters
        self.init = init
        self.weight = Parameter((num_parameters,), partial(constant_, val=init), dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Each positive number, and the others times the learned slope."""
        try:
            return F.prelu(input, self.weight)
        except (RuntimeError, TypeError):
            self._refuse(input)
            raise

    def _refuse(self, input: Any) -> None:
        """Raises if the input is of another shape."""
        many = self.num_parameters > 1
        channels = 1 if not isinstance(input, Tensor) or input.dim() < 2 else input.shape[1]
        if not isinstance(input, Tensor) or (many and channels != self.num_parameters):
            refuse(self, f"(N, {self.num_parameters}, *)" if many else "(*)", input)

    extra_repr = shown_as(torch.nn.PReLU)


class RReLU(Elementwise):
    """Positive numbers as they are, the others times a slope drawn for each of them in training.

    In mode ``"train"`` the slopes are uniform between the bounds and depend on ``self.rng`` alone;
    otherwise they are the mean of the bounds.

    Args:
        lower: the least slope.
        upper: the greatest slope.

    Raises:
        ValueError: if they are in the wrong order.
        RuntimeError: in mode ``"train"``, if no rng was handed to the tree.

    Source: B. Xu and others, "Empirical Evaluation of Rectified Activations in Convolutional
    Network", 2015.

    Example:
        >>> nn.RReLU(0.25, 0.75).eval()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.,  0.,  2.])
    """

    lower: float
    upper: float

    def __init__(self, lower: float = 1 / 8, upper: float = 1 / 3) -> None:
        super().__init__()
        between("RReLU", -inf, lower=lower, upper=upper)
        between("RReLU", lower, upper=upper)
        self.lower = lower
        self.upper = upper

    def forward(self, input: Tensor) -> Tensor:
        """Each positive number, and the others times a slope that is drawn in training."""
        try:
            if self.mode != "train":
                return F.leaky_relu(input, (self.lower + self.upper) / 2)
            shape, dtype, device = input.shape, input.dtype, input.device
        except (AttributeError, TypeError):
            require_tensor(self, input)
            raise
        key = random.as_key(self.rng)
        slopes = random.uniform(key, shape, self.lower, self.upper, dtype=dtype, device=device)
        return torch.where(input <= 0, input * beside(slopes, input), input)

    extra_repr = shown_as(torch.nn.RReLU)
