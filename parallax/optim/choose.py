"""Steps that are left out: one of two trees, where the choice is a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax.tree import core

__all__ = ["choose", "leaves_out_steps", "without_nonfinite"]


def leaves_out_steps(opt: Any) -> bool:
    """Whether an optimizer may return the model as it was, so that there is no update."""
    return bool(getattr(opt, "_leaves_out_steps", False))


def choose(what: str, condition: Tensor, yes: Any, no: Any) -> Any:
    """``yes`` where the condition holds, ``no`` where it does not, leaf by leaf.

    Raises:
        ValueError: if one has a leaf where the other has a hole: a graph computes both, and
            cannot choose between a tensor and nothing.
    """
    if _holes(yes) != _holes(no):
        raise ValueError(
            f"{what}: this step gives the state leaves that it did not have, as the first one may, "
            f"so that compiled and vmapped code cannot leave it out. Make the first step in eager "
            f"code: model, state = opt.step(model, grads, state)"
        )

    def pick(a: Any, b: Any) -> Any:
        return torch.where(condition.to(a.device), a, b) if isinstance(a, Tensor) else a

    return core.map(pick, yes, no)


def without_nonfinite(finite: Tensor, grads: Any) -> Any:
    """The gradients, or ones in their place: so that a step that is left out has a derivative.

    ``where`` multiplies the derivative of what it leaves out by zero, and nan by zero is nan. Ones
    rather than zeros: the square root of a second moment has no derivative at zero.
    """
    return core.map(lambda g: torch.where(finite.to(g.device), g, torch.ones_like(g)), grads)


def _holes(tree: Any) -> list[bool]:
    return [leaf is None for leaf in core.flatten(tree)[0]]
