"""A tree's numbers as one vector, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.tree import core
from parallax.tree.arguments import check_tree
from parallax.tree.leaves import is_inexact
from parallax.tree.mixing import refuse_rows

__all__ = ["ravel"]

T = TypeVar("T")


def ravel(tree: T) -> tuple[Tensor, Callable[[Tensor], T]]:
    """The floating and complex leaves as one vector, and a function from a vector to a tree.

    Both ways are differentiable and can be vmapped.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        The vector, shape ``(n,)``, in the dtype that all leaves promote to, and a function from
        such a vector to a tree of the same structure, each leaf in its own shape and dtype.
        Integer leaves and keys are not in the vector; the function puts them back as they were.

    Raises:
        ValueError: if the leaves are on several devices; from the function, if the vector has
            another shape.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> flat, unravel = tree.ravel({"a": torch.ones(2), "b": torch.zeros(1, 1)})
        >>> flat
        tensor([1., 1., 0.])
        >>> unravel(flat + 1)["b"]
        tensor([[1.]])
    """
    check_tree("tree.ravel", tree)
    found, spec = core.flatten(tree)
    chosen = [k for k, leaf in enumerate(found) if is_inexact(leaf)]
    parts = [found[k] for k in chosen]
    dtype = parts[0].dtype if parts else torch.get_default_dtype()
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
        if part.device != parts[0].device:
            raise ValueError(
                f"ravel: one vector is on one device, and the leaves are on {parts[0].device} "
                f"and {part.device}; move them first: tree.to(tree, device=...)"
            )
    sizes = [part.numel() for part in parts]
    total = sum(sizes)
    try:
        flat = torch.cat([p.reshape(-1).to(dtype) for p in parts]) if parts else torch.zeros(0)
    except RuntimeError as error:
        refuse_rows(error, "tree.ravel", spec.paths, found)
        raise

    def unravel(vector: Any) -> T:
        if not isinstance(vector, Tensor) or tuple(vector.shape) != (total,):
            raise ValueError(
                f"unravel(vector): expected a tensor of shape ({total},), got {shown(vector)}. "
                f"Give a vector such as tree.ravel returns beside this function"
            )
        leaves = list(found)
        for k, piece in zip(chosen, torch.split(vector, sizes) if parts else (), strict=True):
            like = found[k]
            leaves[k] = _cast(piece.reshape(like.shape), like.dtype)
        return cast(T, core.unflatten(spec, leaves))

    return flat, unravel


def _cast(piece: Tensor, dtype: torch.dtype) -> Tensor:
    if piece.is_complex() and not dtype.is_complex:
        piece = piece.real  # the cast alone would warn
    return piece.to(dtype)
