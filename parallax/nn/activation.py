"""Elementwise activations: sigmoids, and functions that multiply a number by a gate."""

from __future__ import annotations

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat.gradients import WhereRecorded
from parallax.nn.arguments import between, one_of
from parallax.nn.elementwise import Elementwise
from parallax.nn.exactness import in_plain_eager_code, one_derivative_at_most
from parallax.nn.families import shown_as
from parallax.nn.refusal import require_tensor

__all__ = [
    "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "LogSigmoid", "Mish", "SiLU", "Sigmoid",
    "Softplus", "Softsign", "Tanh",
]  # fmt: skip


def _hardsigmoid(input: Tensor) -> Tensor:
    """The function of the kernel, in operators: the kernel has a first derivative only."""
    return F.hardtanh(input + 3, 0.0, 6.0) / 6


_hardsigmoid_watched = WhereRecorded(
    {"HardsigmoidBackward0": lambda node: ((node._saved_self,), _hardsigmoid)}
).watch


class Sigmoid(Elementwise):
    """Each number between zero and one: :math:`1 / (1 + e^{-x})`.

    Example:
        >>> nn.Sigmoid()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.1192, 0.5000, 0.8808])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The sigmoid of each number."""
        try:
            return torch.sigmoid(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Hardsigmoid(Elementwise):
    r"""A piecewise linear ``Sigmoid``: :math:`\min(\max(0, x / 6 + 1 / 2), 1)`.

    Example:
        >>> nn.Hardsigmoid()(torch.tensor([-4.0, 0.0, 4.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The piecewise linear sigmoid of each number."""
        try:
            if in_plain_eager_code():
                return _hardsigmoid_watched(F.hardsigmoid(input))
            if one_derivative_at_most(input):
                return F.hardsigmoid(input)
            return _hardsigmoid(input)
        except TypeError:
            require_tensor(self, input)
            raise


class LogSigmoid(Elementwise):
    r"""The logarithm of the ``Sigmoid``: :math:`-\log(1 + e^{-x})`.

    Example:
        >>> nn.LogSigmoid()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-2.1269, -0.6931, -0.1269])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The logarithm of the sigmoid of each number."""
        try:
            return F.logsigmoid(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Tanh(Elementwise):
    r"""Each number between minus one and one: :math:`\tanh x`.

    Example:
        >>> nn.Tanh()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.9640,  0.0000,  0.9640])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The tanh of each number."""
        try:
            return torch.tanh(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Hardtanh(Elementwise):
    r"""Each number clipped to between two bounds: :math:`\min(\max(min\_val, x), max\_val)`.

    Args:
        min_val: the lower bound.
        max_val: the upper bound.

    Raises:
        ValueError: if the upper bound does not exceed the lower one.

    Example:
        >>> nn.Hardtanh()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-1.,  0.,  1.])
    """

    min_val: float
    max_val: float

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0) -> None:
        super().__init__()
        between("Hardtanh", -inf, min_val=min_val, max_val=max_val)
        if max_val <= min_val:
            raise ValueError(f"Hardtanh(max_val=): must exceed min_val={min_val}, got {max_val}")
        self.min_val = min_val
        self.max_val = max_val

    def forward(self, input: Tensor) -> Tensor:
        """Each number, clipped to the bounds."""
        try:
            return F.hardtanh(input, self.min_val, self.max_val)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.Hardtanh)


class SiLU(Elementwise):
    """Each number times its sigmoid: :math:`x / (1 + e^{-x})`, also called swish.

    Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.

    Example:
        >>> nn.SiLU()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.2384,  0.0000,  1.7616])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each number times its sigmoid."""
        try:
            return F.silu(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Mish(Elementwise):
    r"""Each number times the tanh of its softplus: :math:`x \tanh(\log(1 + e^x))`.

    Source: D. Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2020.

    Example:
        >>> nn.Mish()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.2525,  0.0000,  1.9440])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each number times the tanh of its softplus."""
        try:
            return F.mish(input)
        except TypeError:
            require_tensor(self, input)
            raise


class Hardswish(Elementwise):
    """Each number times its ``Hardsigmoid``: a piecewise ``SiLU``.

    Source: A. Howard and others, "Searching for MobileNetV3", 2019.

    Example:
        >>> nn.Hardswish()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.3333,  0.0000,  1.6667])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Each number times its ``Hardsigmoid``."""
        try:
            return F.hardswish(input)
        except TypeError:
            require_tensor(self, input)
            raise


class GELU(Elementwise):
    r"""Each number times the standard normal distribution function at it: :math:`x \Phi(x)`.

    Args:
        approximate: ``"none"``, or ``"tanh"`` for a formula with a tanh that is close to it.

    Raises:
        ValueError: if ``approximate`` is neither.

    Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.

    Example:
        >>> nn.GELU()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.0455,  0.0000,  1.9545])
    """

    approximate: str

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        one_of("GELU", "approximate", approximate, "none", "tanh")
        self.approximate = approximate

    def forward(self, input: Tensor) -> Tensor:
        """Each number times the share of a standard normal distribution below it."""
        try:
            return F.gelu(input, approximate=self.approximate)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.GELU)


class Softplus(Elementwise):
    r"""A smooth ``ReLU``: :math:`\log(1 + e^{\beta x}) / \beta`.

    Args:
        beta: how close to ``ReLU`` the function is.
        threshold: a number :math:`x` is returned as it is if :math:`\beta x` exceeds this.

    Raises:
        ValueError: if beta is 0.

    Example:
        >>> nn.Softplus()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([0.1269, 0.6931, 2.1269])
    """

    beta: float
    threshold: float

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        super().__init__()
        between("Softplus", -inf, beta=beta, threshold=threshold)
        if beta == 0:
            raise ValueError("Softplus(beta=): must not be 0")
        self.beta = beta
        self.threshold = threshold

    def forward(self, input: Tensor) -> Tensor:
        """The softplus of each number."""
        try:
            return F.softplus(input, self.beta, self.threshold)
        except TypeError:
            require_tensor(self, input)
            raise

    extra_repr = shown_as(torch.nn.Softplus)


class Softsign(Elementwise):
    """Each number between minus one and one: :math:`x / (1 + |x|)`.

    Example:
        >>> nn.Softsign()(torch.tensor([-2.0, 0.0, 2.0]))
        tensor([-0.6667,  0.0000,  0.6667])
    """

    def forward(self, input: Tensor) -> Tensor:
        """The softsign of each number."""
        # The formula of F.softsign, with one tensor less where no forward derivative is taken.
        try:
            size = torch.abs(input)
        except TypeError:
            require_tensor(self, input)
            raise
        return torch.div(input, size.add_(1) if in_plain_eager_code() else size + 1)
