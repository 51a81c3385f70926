"""Every kind of constant."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from parallax import Module, Parameter


class Padding(enum.Enum):
    """An enum as a constant."""

    ZEROS = "zeros"
    REFLECT = "reflect"


@dataclass(frozen=True)
class Config:
    """A frozen dataclass as a constant."""

    heads: int = 2
    names: tuple[str, ...] = ("q", "k")


def double(x: Tensor) -> Tensor:
    """A function as a constant."""
    return 2 * x


CONSTANTS: dict[str, Any] = {
    "none": None,
    "integer": 3,
    "one": 1,
    "true": True,
    "unit": 1.0,
    "real": 0.1,
    "nan": math.nan,
    "infinity": -math.inf,
    "minus_zero": -0.0,
    "imaginary": 1 - 2j,
    "text": "same",
    "raw": b"\x00\xff",
    "dots": ...,
    "nested": (1, (2.0, ("three", None))),
    "unordered": frozenset({1, 2, 3}),
    "span": range(0, 10, 3),
    "dtype": torch.bfloat16,
    "device": torch.device("cpu"),
    "layout": torch.strided,
    "padding": Padding.REFLECT,
    "config": Config(heads=8),
    "function": double,
    "builtin": torch.relu,
    "part": partial(torch.clamp, min=0.0, max=6.0),
    "cls": dict,
    "size": torch.Size([2, 3]),
}


class Constants(Module):
    """Every kind of constant, beside one leaf."""

    values: tuple[Any, ...]
    weight: Parameter
    rate: float = 0.5
    kind: ClassVar[str] = "shared by all"

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * self.rate
