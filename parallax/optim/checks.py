"""Which leaves are stepped, and whether the gradients fit them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import tracing
from parallax.func.moving import trainable_of
from parallax.tree import core
from parallax.tree.align import align

__all__ = ["check_layouts", "gather", "paths_of"]


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
    trainable = trainable_of(part)
    if all(trainable) and _alike(leaves, given):  # nearly always
        return list(range(len(leaves))), given
    rows = enumerate(zip(leaves, given, trainable))  # noqa: B905  # aligned; dynamo traces no strict=
    chosen = [k for k, (a, b, t) in rows if t and a is not None and b is not None]
    params, mine = [leaves[k] for k in chosen], [given[k] for k in chosen]
    if not _alike(params, mine):
        for k, leaf, grad in zip(chosen, params, mine):  # noqa: B905  # as above
            _check_pair(what, model, k, leaf, grad)
    return chosen, given


def _alike(params: Sequence[Any], grads: Sequence[Any]) -> bool:
    """Whether all are tensors, each gradient of the shape and dtype of its parameter."""
    try:
        return [p.shape for p in params] == [g.shape for g in grads] and (
            [p.dtype for p in params] == [g.dtype for g in grads]
        )
    except AttributeError:  # of a hole
        return False


def check_layouts(what: str, model: Any, chosen: list[int], given: Sequence[Any]) -> None:
    """Raises for a sparse gradient: a kernel could stop half-way, in memory that was donated."""
    for k in chosen:
        if given[k].layout is not torch.strided:
            path = f"{type(model).__name__}.{paths_of(model)[k]}"
            raise ValueError(
                f"{what}: the gradient of {path} is {given[k].layout}. "
                f"Make it dense first: grads = tree.map(Tensor.to_dense, grads)"
            )


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
