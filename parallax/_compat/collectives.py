"""Several distributed tensors in one collective, and their derivatives.

- ``gathered``: put together along one dimension of their mesh by one all-gather; backward is one
  reduce-scatter.
- ``gradients_placed``: gradients with the placements of their leaves; sums by one all-reduce.

Both work on autograd's tape, within ``torch.func`` and while dynamo traces, and have derivatives of
any order. A trace gets one node for each, whose code runs when the classes of tensors are known:
within a transform dynamo does not know them.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import buckets, dynamo, shards

__all__ = ["gathered", "gradients_of_parts", "gradients_placed"]


def gathered(leaves: Sequence[Tensor], name: str) -> list[Tensor]:
    """Tensors put together along the dimension of their mesh that has this name.

    All that are cut along it, and have one dtype, by one collective; others come back as they are.

    Args:
        leaves: distributed or not, in whatever wrappers of transforms.
        name: of the dimension of the mesh.
    """
    if dynamo.is_compiling():
        _allow_in_graph()
        return list(_gathered_all(name, *leaves))
    found = list(leaves)
    for bucket in buckets.buckets_of(leaves, name):
        wholes = _Gather.apply(bucket, *[leaves[k] for k in bucket.places])  # type: ignore[no-untyped-call]  # it is torch's
        for k, whole in zip(bucket.places, wholes, strict=True):
            found[k] = whole
    return found


def gradients_of_parts(bucket: buckets.Bucket, grads: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of what was gathered to those of its parts, with a graph if they have one."""
    return _Cut.apply(bucket, *grads)  # type: ignore[no-untyped-call, no-any-return]  # it is torch's


def gradients_placed(grads: list[Any], leaves: Sequence[Any]) -> list[Any]:
    """Gradients with the placements of their leaves, so that none is larger than its leaf.

    Torch leaves a gradient as backward computed it: as terms of a sum, say, each of full size.

    Args:
        grads: one per leaf, ``None`` for none.
        leaves: what was differentiated.
    """
    if not shards.any_distributed(leaves):
        return grads
    places = [
        k
        for k, (grad, leaf) in enumerate(zip(grads, leaves, strict=True))
        if grad is not None and shards.is_distributed(grad) and grad.placements != leaf.placements
    ]
    if not places:
        return grads
    found = list(grads)
    chosen = [grads[k] for k in places]
    if dynamo.is_compiling():
        _allow_in_graph()
    placed = _placed_as(len(places), *chosen, *[leaves[k] for k in places])
    for k, grad in zip(places, placed, strict=True):
        found[k] = grad
    return found


def _placed_as(count: int, *tensors: Any) -> tuple[Tensor, ...]:
    """The first ``count`` tensors, placed as the others."""
    like = tuple([leaf._spec for leaf in tensors[count:]])
    return tuple(_Place.apply(like, *tensors[:count]))  # type: ignore[no-untyped-call]  # it is torch's


def _gathered_all(name: str, *leaves: Tensor) -> tuple[Tensor, ...]:
    return tuple(gathered(leaves, name))


@dynamo.constant_in_traces
def _allow_in_graph() -> None:
    """Has dynamo take each of these functions as one node; loads dynamo, which runs already."""
    from torch._dynamo import allow_in_graph

    allow_in_graph(_gathered_all)
    allow_in_graph(_placed_as)


# -- derivatives --------------------------------------------------------------------------------


class _Gather(torch.autograd.Function):
    """One all-gather; backward is one reduce-scatter."""

    @staticmethod
    def forward(bucket: buckets.Bucket, *leaves: Any) -> tuple[Tensor, ...]:
        told = zip(leaves, bucket.parts, strict=True)
        parts = [buckets.as_placed(leaf, bucket.mesh, at.placements) for leaf, at in told]
        wholes = buckets.all_gathered(bucket, [part._local_tensor for part in parts])
        return tuple([shards.with_spec(*pair) for pair in zip(wholes, bucket.wholes, strict=True)])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bucket, *leaves = inputs
        pairs = zip(leaves, output, strict=True)
        ctx.mark_non_differentiable(*[out for leaf, out in pairs if not leaf.requires_grad])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        pairs = zip(grads, ctx.needs_input_grad[1:], strict=True)
        chosen = [k for k, (grad, needed) in enumerate(pairs) if needed and grad is not None]
        found: list[Any] = [None] * len(grads)
        if chosen:
            parts = _Cut.apply(ctx.bucket.of(chosen), *[grads[k] for k in chosen])  # type: ignore[no-untyped-call]  # it is torch's
            for k, part in zip(chosen, parts, strict=True):
                found[k] = part
        return None, *found

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _of_all_members(_Gather, info, in_dims, args)


class _Cut(torch.autograd.Function):
    """Gradients of what was gathered to those of its parts; backward is an all-gather."""

    @staticmethod
    def forward(bucket: buckets.Bucket, *grads: Any) -> tuple[Tensor, ...]:
        return buckets.cut(bucket, grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bucket = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *_Gather.apply(ctx.bucket, *cotangents)  # type: ignore[no-untyped-call]  # it is torch's

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _of_all_members(_Cut, info, in_dims, args)


class _Place(torch.autograd.Function):
    """The same values in other placements; so are the cotangents, in whatever placements."""

    @staticmethod
    def forward(like: Any, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(buckets.placed(tensors, like))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return None, *cotangents


def _of_all_members(function: Any, info: Any, in_dims: Any, args: Any) -> Any:
    """A function of a bucket's tensors of which some are mapped: of those, all members at once."""
    bucket, *tensors = args
    which = [dim is not None for dim in in_dims[1:]]
    pairs = zip(tensors, in_dims[1:], strict=True)
    first = [tensor if dim is None else tensor.movedim(dim, 0) for tensor, dim in pairs]
    found = function.apply(bucket.mapped(which, info.batch_size), *first)
    return found, tuple([0 if new else None for new in which])
