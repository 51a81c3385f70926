"""Whether derivatives go through the steps of an optimizer, and when a graph is recorded."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.tree.recording import RUNNING

__all__ = ["being_taken", "is_differentiable", "recorded", "warn_of_graph"]


def being_taken() -> bool:
    """Whether a derivative is being taken of what the caller computes.

    That is so within ``func.grad`` and its like, those of ``torch.func`` too, where gradients are
    recorded at all. Such a derivative ends, so a step within it may record its graph.
    """
    if not torch.is_grad_enabled():
        return False
    if dynamo.is_compiling():
        return functorch.derivatives_running() != (0, 0)
    return RUNNING.depth > 0 or (functorch.transform_active() and functorch.differentiating())


def is_differentiable(opt: Any) -> bool:
    """Whether derivatives go through the steps of an optimizer."""
    return bool(getattr(opt, "_differentiable", False))


def recorded(differentiable: bool) -> AbstractContextManager[None]:
    """A context that records a graph if the step is differentiable, and none otherwise.

    Without it a loop whose leaves require grad would grow one graph over all of its steps.
    """
    return torch.set_grad_enabled(differentiable and torch.is_grad_enabled())


def warn_of_graph(what: str, grads: Any, name: str) -> None:
    """Warns that no derivative goes through a step, if somebody may expect one.

    Args:
        what: the function that steps.
        grads: the gradients, in any order; what is not a tensor carries no graph.
        name: the class that takes ``differentiable=True``.
    """
    if being_taken():
        warnings.warn(
            f"{what}: no derivative goes through this step, which counts as a constant: {name} has "
            f"no differentiable steps. Take another optimizer, such as optim.Adam",
            stacklevel=3,
        )
    elif any([isinstance(grad, Tensor) and grad.grad_fn is not None for grad in grads]):
        warnings.warn(
            f"{what}: the gradients carry a graph, and this step records none, so no derivative "
            f"goes through it. To differentiate it, write {name}(..., differentiable=True). "
            f"Otherwise take gradients that carry none: func.grad of model.train(rng), or "
            f"model.grad() after backward()",
            stacklevel=3,
        )
