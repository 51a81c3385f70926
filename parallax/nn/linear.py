"""Affine and bilinear maps."""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax.fields import Parameter
from parallax.module import Module
from parallax.nn.arguments import uniform_within
from parallax.nn.refusal import ends_with, refuse

__all__ = ["Linear"]


class Linear(Module):
    r"""An affine map of the last dimension: :math:`y = x A^T + b`.

    Args:
        in_features: the size of the last dimension of the input.
        out_features: the size of the last dimension of the output.
        bias: whether to add :math:`b`.
        dtype: of the parameters; by default torch's default dtype.

    Shape:
        - input: ``(*, in_features)``
        - output: ``(*, out_features)``

    Raises:
        ValueError: if a size is negative, or the input has another last dimension.

    Example:
        >>> import torch
        >>> from parallax import nn
        >>> nn.Linear(3, 2).initialize(0)(torch.ones(5, 3)).shape
        torch.Size([5, 2])
    """

    in_features: int
    out_features: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        # A uniform distribution of variance 1 / (3 fan_in), as torch.nn draws it.
        weight = partial(init.kaiming_uniform_, a=sqrt(5))
        self.weight = Parameter((out_features, in_features), weight, dtype=dtype)
        start = uniform_within(in_features)
        self.bias = Parameter((out_features,), start, dtype=dtype) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """Map the last dimension."""
        try:
            return F.linear(input, self.weight, self.bias)
        except (RuntimeError, TypeError):
            if not ends_with(input, self.in_features):
                refuse(self, f"(*, {self.in_features})", input)
            raise

    def extra_repr(self) -> str:
        """The arguments, as torch shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
