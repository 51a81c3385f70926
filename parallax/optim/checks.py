"""Which leaves are stepped, and whether the gradients fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from parallax import tracing
from parallax.func.moving import trainable_of
from parallax.tree import core
from parallax.tree.align import align

__all__ = ["gather", "paths_of"]


def gather(
    what: str, model: Any, leaves: Sequence[Any], part: Any, grads: Any
) -> tuple[list[int], Sequence[Any]]:
    """The indices of the leaves to step, and all gradients in the order of the leaves.

    Raises:
        ValueError: if the gradients have another skeleton, or one has another shape or dtype; the
            message names the first path.
    """
    try:
        given = align(part, grads)
    except ValueError as error:
        raise ValueError(f"{what}: the gradients: {error}") from None
    chosen = []
    rows = zip(leaves, given, trainable_of(part))  # noqa: B905  # aligned; dynamo traces no strict=
    for k, (leaf, grad, trains) in enumerate(rows):
        if grad is not None and trains and leaf is not None:
            if type(grad) is not Tensor or grad.shape != leaf.shape or grad.dtype is not leaf.dtype:
                _check_pair(what, model, k, leaf, grad)
            chosen.append(k)
    return chosen, given


def _check_pair(what: str, model: Any, k: int, leaf: Any, grad: Any) -> None:
    path = f"{type(model).__name__}.{paths_of(model)[k]}"
    if not isinstance(leaf, Tensor):
        raise TypeError(f"{what}: {path} holds {leaf!r}, which is no tensor")
    if not isinstance(grad, Tensor):
        raise TypeError(f"{what}: the gradient of {path} is a {type(grad).__name__}, not a tensor")
    if grad.shape != leaf.shape:
        raise ValueError(
            f"{what}: {path} has shape {tuple(leaf.shape)} and its gradient has {tuple(grad.shape)}"
        )
    if grad.dtype is not leaf.dtype:
        raise ValueError(
            f"{what}: {path} is {leaf.dtype} and its gradient is {grad.dtype}. "
            f"Cast them first: grads = tree.map(lambda g, p: g.to(p.dtype), grads, model)"
        )


def paths_of(model: Any) -> list[str]:
    """The dotted path of every unique leaf of a module."""
    part = core._open(model)[1]
    return part.paths() if type(part) is tracing.Outline else list(part.paths)
