"""What nearly every wrong call is about."""

from __future__ import annotations

from typing import Any

import torch

from parallax import Buffer, Module, Parameter

__all__ = ["Net", "net"]


class Net(Module):
    """A parameter and a buffer."""

    weight: Parameter
    mean: Buffer

    def forward(self, x: Any) -> Any:
        return (self.weight * x - self.mean).sum()


def net() -> Net:
    """One with values."""
    return Net(torch.ones(3), torch.zeros(3))
