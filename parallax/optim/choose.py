"""One of two trees of the same structure, where the choice is a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax.tree import core

__all__ = ["choose"]


def choose(condition: Tensor, yes: Any, no: Any) -> Any:
    """``yes`` where the condition holds, ``no`` where it does not, leaf by leaf."""

    def pick(a: Any, b: Any) -> Any:
        return torch.where(condition.to(a.device), a, b) if isinstance(a, Tensor) else a

    return core.map(pick, yes, no)
