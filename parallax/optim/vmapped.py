"""A step under ``vmap``: each member of the ensemble is stepped as it would be on its own.

Most of torch's kernels read the number of steps, and the learning rate, as Python numbers, which
vmap refuses. So a whole step is one operator for vmap. Its vmap rule is a loop over the members,
and the numbers are those of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from parallax._compat import functorch

__all__ = ["call"]


def call(function: Callable[[Any], Any], arguments: Any) -> Any:
    """``function(arguments)`` where it has no rule for vmap.

    Args:
        function: takes containers of tensors and other values to a list of new tensors.
        arguments: the containers; batched tensors may stand anywhere in them.

    Returns:
        The list, batched.
    """
    leaves, spec = optree.tree_flatten(arguments, none_is_leaf=True)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def flat(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return tuple(function(optree.tree_unflatten(spec, filled)))

    return list(_call(flat, [leaves[place].detach() for place in places]))


def _call(flat: Callable[..., Any], tensors: list[Tensor]) -> Any:
    if functorch.vmap_active():
        return _Members.apply(flat, *tensors)  # type: ignore[no-untyped-call]  # torch's
    return flat(tuple(tensors))


class _Members(torch.autograd.Function):
    """One operator around the step, for its vmap rule."""

    @staticmethod
    def forward(flat: Any, *tensors: Any) -> Any:
        return flat(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        flat, *tensors = args
        members = []
        for index in range(info.batch_size):
            picked = [
                tensor if dim is None else tensor.select(dim, index)
                for tensor, dim in zip(tensors, in_dims[1:], strict=True)
            ]
            members.append(_call(flat, picked))
        stacked = tuple(torch.stack(column) for column in zip(*members, strict=True))
        return stacked, (0,) * len(stacked)
