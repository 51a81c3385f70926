"""What is refused before a plan is used."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.core.fields import Lazy, UninitializedError
from parallax.tree.places import Survey

__all__ = ["check_rank", "refuse_declared"]


def refuse_declared(survey: Survey) -> None:
    """Raises if a leaf of a tree has no value, or a graph."""
    pairs = zip(survey.chart.first, survey.leaves, strict=True)
    for entry, leaf in pairs:
        if isinstance(leaf, Lazy):
            raise UninitializedError(
                f"Plan.apply: {entry.path} has no value yet. Write model.initialize(0, plan=plan)"
            )
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None:
            raise RuntimeError(
                f"Plan.apply: {entry.path} was computed from others and has a graph, which would "
                f"be cut off. Apply the plan before, outside of the gradient"
            )


def check_rank(rank: Any) -> None:
    """Raises if this is neither a process of the default group nor ``None``."""
    if rank is None:
        return
    if type(rank) is not int:
        raise TypeError(
            f"Plan.gather(rank=): expected the number of a process or None, got {shown(rank)}. "
            f"Write plan.gather(model, rank=0)"
        )
    count = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if not 0 <= rank < count:
        raise ValueError(
            f"Plan.gather(rank={rank}): there are {count} process(es), from 0 to {count - 1}. "
            f"Write plan.gather(model, rank=0)"
        )
