"""Affine and bilinear maps."""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from parallax._errors.arguments import check_flags
from parallax.core.fields import Parameter
from parallax.core.module import Module
from parallax.nn.arguments import at_least, positive, uniform_within
from parallax.nn.families import shown_as
from parallax.nn.refusal import ends_with, name_in, refuse

__all__ = ["Bilinear", "Identity", "Linear"]


class Linear(Module):
    """An affine map of the last dimension: :math:`y = x A^T + b`.

    Args:
        in_features: the size of the last dimension of the input.
        out_features: the size of the last dimension of the output.
        bias: whether to add :math:`b`.

    Shape:
        - input: ``(*, in_features)``
        - output: ``(*, out_features)``

    Raises:
        TypeError: if a size is not an int, or the input is not a tensor.
        ValueError: if a size is negative, or the input has another last dimension.

    Example:
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
        at_least("Linear", 0, in_features=in_features, out_features=out_features)
        check_flags("Linear", bias=bias)
        self.in_features = in_features
        self.out_features = out_features
        # A uniform distribution of variance 1 / (3 fan_in), as torch.nn draws it.
        weight = partial(init.kaiming_uniform_, a=sqrt(5))
        self.weight = Parameter((out_features, in_features), weight, dtype=dtype)
        start = uniform_within(in_features)
        self.bias = Parameter((out_features,), start, dtype=dtype) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        """The affine map of the last dimension."""
        try:
            return F.linear(input, self.weight, self.bias)
        except (RuntimeError, TypeError) as error:
            if not ends_with(input, self.in_features):
                refuse(self, f"(*, {self.in_features})", input)
            name_in(error, self)
            raise

    extra_repr = shown_as(torch.nn.Linear)


class Bilinear(Module):
    """A bilinear form of two inputs for each output feature: :math:`y_k = x_1^T A_k x_2 + b_k`.

    Args:
        in1_features: the size of the last dimension of the first input.
        in2_features: the size of the last dimension of the second input.
        out_features: the size of the last dimension of the output.
        bias: whether to add :math:`b`.

    Shape:
        - input1: ``(*, in1_features)``
        - input2: ``(*, in2_features)``, where all but the last dimension are those of input1
        - output: ``(*, out_features)``

    Raises:
        TypeError: if a size is not an int, or an input is not a tensor.
        ValueError: if a size is not positive, or the inputs are of other shapes.

    Example:
        >>> nn.Bilinear(3, 4, 2).initialize(0)(torch.ones(5, 3), torch.ones(5, 4)).shape
        torch.Size([5, 2])
    """

    in1_features: int
    in2_features: int
    out_features: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        positive("Bilinear", in1_features=in1_features, in2_features=in2_features)
        positive("Bilinear", out_features=out_features)
        check_flags("Bilinear", bias=bias)
        self.in1_features = in1_features
        self.in2_features = in2_features
        self.out_features = out_features
        start = uniform_within(in1_features)
        self.weight = Parameter((out_features, in1_features, in2_features), start, dtype=dtype)
        self.bias = Parameter((out_features,), start, dtype=dtype) if bias else None

    def forward(self, input1: Tensor, input2: Tensor) -> Tensor:
        """The value of each bilinear form for the pairs of vectors in the last dimensions."""
        try:
            return F.bilinear(input1, input2, self.weight, self.bias)
        except (IndexError, RuntimeError, TypeError) as error:
            self._refuse(input1, input2)
            name_in(error, self)
            raise

    def _refuse(self, input1: Any, input2: Any) -> None:
        """Raises if the inputs are of other shapes."""
        if not ends_with(input1, self.in1_features):
            refuse(self, f"(*, {self.in1_features})", input1, "input1")
        expected = (*input1.shape[:-1], self.in2_features)
        if not isinstance(input2, Tensor) or input2.shape != expected:
            refuse(self, f"({', '.join(map(str, expected))})", input2, "input2")

    extra_repr = shown_as(torch.nn.Bilinear)


class Identity(Module):
    """Returns its input: a placeholder where a layer is expected.

    Args:
        *args: ignored, so that it can be put in the place of any layer.
        **kwargs: ignored.

    Shape:
        - input: anything
        - output: the input itself

    Example:
        >>> nn.Identity(54, unused=True)(1)
        1
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Any:
        """The input."""
        return input
