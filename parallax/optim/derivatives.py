"""Whether derivatives go through the steps of an optimizer, and when a graph is recorded."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch
from parallax.tree.recording import RUNNING

__all__ = ["being_taken", "is_differentiable", "recorded", "refuse_derivatives",
           "refuse_transforms", "warn_of_graph"]  # fmt: skip


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


def refuse_derivatives(what: str, read: Callable[[], Iterable[Any]]) -> None:
    """Raises where a derivative is taken through the step of a class that has none.

    Args:
        what: the function that steps, ``step`` of the class.
        read: gives what the step reads; asked only while a derivative is being taken.

    Raises:
        RuntimeError: with what to write. In compiled code no tensor says whether it is
            differentiated, so there the derivative alone is enough.
    """
    if not being_taken():
        return
    tensors = (value for value in read() if isinstance(value, Tensor))
    if dynamo.is_compiling() or any(map(functorch.is_differentiated, tensors)):
        raise RuntimeError(
            f"{what}: a derivative is being taken, and {what.removesuffix('.step')} has no "
            f"differentiable steps. Take another optimizer, such as optim.Adam. Or, if the step "
            f"is a constant of the derivative: with torch.no_grad(): model, state = "
            f"opt.step(model, grads, state)"
        )


def refuse_transforms(what: str, does: str, within: bool) -> None:
    """Raises for a class of ``torch.optim`` within a transform.

    Args:
        what: the function that was called.
        does: what it does to the class.
        within: whether a transform runs.
    """
    if within:
        raise RuntimeError(
            f"{what} {does} a stateful optimizer, which transforms of torch.func cannot. Call it "
            f"outside; or take one of parallax.optim, such as optim.Adam, which can be vmapped and "
            f"differentiated"
        )


def warn_of_graph(what: str, grads: Any, opt: Any) -> None:
    """Warns if a derivative is wanted that the step does not record.

    Args:
        what: the function that steps.
        grads: the gradients, in any order; what is not a tensor carries no graph.
        opt: the optimizer.
    """
    if not torch.is_grad_enabled():
        return
    able = "differentiable" in getattr(opt, "hyper", ())
    asked = f"write optim.{type(opt).__name__ if able else 'Adam'}(..., differentiable=True)"
    if any([isinstance(grad, Tensor) and grad.grad_fn is not None for grad in grads]):
        warnings.warn(
            f"{what}: the gradients carry a graph, and this step records none, so no derivative "
            f"goes through it. To differentiate it, {asked}. "
            f"Otherwise take gradients that carry none: func.grad of model.train(rng), or "
            f"model.grad() after backward()",
            stacklevel=3,
        )
    elif any([leaf.requires_grad for leaf in getattr(opt, "_leaves", ())]):
        warnings.warn(
            f"{what}: a hyper-parameter requires grad, and this step records no graph, so it gets "
            f"no gradient. To differentiate the step, {asked}. Otherwise give lr.detach()",
            stacklevel=3,
        )
