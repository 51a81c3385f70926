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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards

__all__ = ["Bucket", "all_gathered", "buckets_of", "distributed", "gathered", "gradients_placed",
           "joined"]  # fmt: skip


class Bucket(NamedTuple):
    """What is put together by one collective.

    Attributes:
        mesh: of all its tensors.
        dim: the dimension of the mesh along which they are put together.
        placements: of each tensor, while it is in parts.
        shapes: of each whole tensor.
        cuts: which dimension of each tensor is cut.
        places: of each tensor among those that were given.
    """

    mesh: Any
    dim: int
    placements: tuple[Any, ...]
    shapes: tuple[Any, ...]
    cuts: tuple[int, ...]
    places: tuple[int, ...]

    def of(self, chosen: Sequence[int]) -> Bucket:
        """The bucket of some of the tensors."""
        lists = [tuple([items[k] for k in chosen]) for items in self[2:]]
        return Bucket(self.mesh, self.dim, *lists)

    def whole(self) -> list[tuple[Any, ...]]:
        """The placements of each tensor when it is put together."""
        from torch.distributed.tensor import Replicate

        dim = self.dim
        return [(*told[:dim], Replicate(), *told[dim + 1 :]) for told in self.placements]


def buckets_of(leaves: Sequence[Tensor], name: str) -> list[Bucket]:
    """The tensors that are cut along the dimension of their mesh of this name, by mesh and dtype.

    Args:
        leaves: distributed or not, in whatever wrappers of transforms.
        name: of the dimension of the mesh.
    """
    inner: list[Any] = [functorch.innermost(leaf) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for k, leaf in enumerate(inner):
        if shards.is_distributed(leaf) and name in (leaf.device_mesh.mesh_dim_names or ()):
            dim = leaf.device_mesh.mesh_dim_names.index(name)
            if _is_evenly_cut(leaf, dim):
                groups.setdefault((leaf.device_mesh, dim, leaf.dtype), []).append(k)
    found = []
    for (mesh, dim, _), places in groups.items():
        placements = tuple([inner[k].placements for k in places])
        shapes = tuple([inner[k].shape for k in places])
        cuts = tuple([told[dim].dim for told in placements])
        found.append(Bucket(mesh, dim, placements, shapes, cuts, tuple(places)))
    return found


def _is_evenly_cut(leaf: Any, dim: int) -> bool:
    """Whether the parts of a tensor along a dimension of its mesh follow each other, all alike.

    Others are left to torch, which gathers them one by one where an operator needs that.
    """
    placement = leaf.placements[dim]
    if not placement.is_shard():
        return False
    others = [p for k, p in enumerate(leaf.placements) if k != dim and p.is_shard(placement.dim)]
    return not others and leaf.shape[placement.dim] % leaf.device_mesh.size(dim) == 0


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
    for bucket in buckets_of(leaves, name):
        for k, whole in zip(bucket.places, joined(bucket, None, leaves), strict=True):
            found[k] = whole
    return found


def joined(bucket: Bucket, after: Callable[[], None] | None, leaves: Sequence[Tensor]) -> Any:
    """The whole tensors of a bucket.

    Args:
        bucket: which of the tensors.
        after: is called when backward has the gradients of all of them.
        leaves: those that the bucket was made of.
    """
    return _Gather.apply(bucket, after, *[leaves[k] for k in bucket.places])  # type: ignore[no-untyped-call]  # it is torch's


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
    targets = tuple([(leaf.device_mesh, leaf.placements) for leaf in tensors[count:]])
    return tuple(_Place.apply(targets, *tensors[:count]))  # type: ignore[no-untyped-call]  # it is torch's


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
    def forward(bucket: Bucket, after: Any, *leaves: Any) -> tuple[Tensor, ...]:
        wholes = all_gathered(bucket, [leaf._local_tensor for leaf in leaves])
        told = zip(wholes, bucket.whole(), bucket.shapes, strict=True)
        return tuple([distributed(x, bucket.mesh, at, shape) for x, at, shape in told])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bucket, ctx.after, *leaves = inputs
        pairs = zip(leaves, output, strict=True)
        ctx.mark_non_differentiable(*[out for leaf, out in pairs if not leaf.requires_grad])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        if ctx.after is not None:
            ctx.after()
        pairs = zip(grads, ctx.needs_input_grad[2:], strict=True)
        chosen = [k for k, (grad, needed) in enumerate(pairs) if needed and grad is not None]
        found: list[Any] = [None] * (2 + len(grads))
        if chosen:
            parts = _Cut.apply(ctx.bucket.of(chosen), *[grads[k] for k in chosen])  # type: ignore[no-untyped-call]  # it is torch's
            for k, part in zip(chosen, parts, strict=True):
                found[2 + k] = part
        return tuple(found)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        bucket, after, *leaves = args
        return _member_by_member(
            info.batch_size,
            in_dims[2:],
            leaves,
            lambda row: _Gather.apply(bucket, after, *row),  # type: ignore[no-untyped-call]  # it is torch's
        )


class _Cut(torch.autograd.Function):
    """Gradients of what was gathered to those of its parts; backward is an all-gather."""

    @staticmethod
    def forward(bucket: Bucket, *grads: Any) -> tuple[Tensor, ...]:
        return _cut(bucket, grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.bucket = inputs[0]

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return None, *_Gather.apply(ctx.bucket, None, *cotangents)  # type: ignore[no-untyped-call]  # it is torch's

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        bucket, *grads = args
        return _member_by_member(
            info.batch_size,
            in_dims[1:],
            grads,
            lambda row: _Cut.apply(bucket, *row),  # type: ignore[no-untyped-call]  # it is torch's
        )


class _Place(torch.autograd.Function):
    """The same values in other placements; so are the cotangents, in whatever placements."""

    @staticmethod
    def forward(targets: Any, *tensors: Any) -> tuple[Tensor, ...]:
        return tuple(_placed(tensors, targets))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        return None, *cotangents


def _member_by_member(
    size: int, dims: Sequence[Any], tensors: Sequence[Tensor], call: Callable[[list[Tensor]], Any]
) -> Any:
    """A function of tensors that are mapped: called for each member, the results stacked."""
    pairs = list(zip(tensors, dims, strict=True))
    rows = [call([t if d is None else t.select(d, k) for t, d in pairs]) for k in range(size)]
    columns = [torch.stack(column) for column in zip(*rows, strict=True)]
    return tuple(columns), (0,) * len(columns)


# -- communication ------------------------------------------------------------------------------


def all_gathered(bucket: Bucket, parts: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of the whole tensors, from what it holds of them in parts."""
    import torch.distributed._functional_collectives as collectives

    count = bucket.mesh.size(bucket.dim)
    flat = torch.cat([part.reshape(-1) for part in parts])
    flat = _waited(collectives.all_gather_single(flat, 0, (bucket.mesh, bucket.dim)))
    rows = flat.view(count, -1).split([part.numel() for part in parts], 1)
    return [
        row.unflatten(1, part.shape).movedim(0, cut).flatten(cut, cut + 1)
        for row, part, cut in zip(rows, parts, bucket.cuts, strict=True)
    ]


def _cut(bucket: Bucket, grads: Sequence[Any]) -> tuple[Tensor, ...]:
    """The gradients of the parts, from those of the whole tensors, however these are placed."""
    mesh, dim = bucket.mesh, bucket.dim
    found = []
    summed = []
    for k, (grad, whole) in enumerate(zip(grads, bucket.whole(), strict=True)):
        told = bucket.placements[k]
        if grad.placements[dim].is_partial("sum"):
            summed.append(k)
            # Sums over other dimensions wait: of parts they are shorter.
            told = [
                have if d == dim or _is_sum(have, want) else want
                for d, (have, want) in enumerate(zip(grad.placements, whole, strict=True))
            ]
        found.append(grad.redistribute(mesh, told))
    parts = _reduce_scattered(bucket.of(summed), [found[k]._local_tensor for k in summed])
    for k, part in zip(summed, parts, strict=True):
        told = list(found[k].placements)
        told[dim] = bucket.placements[k][dim]
        found[k] = distributed(part, mesh, tuple(told), bucket.shapes[k])
    return tuple(_placed(found, [(mesh, told) for told in bucket.placements]))


def _reduce_scattered(bucket: Bucket, terms: Sequence[Tensor]) -> list[Tensor]:
    """This process's parts of sums, from its terms, by one reduce-scatter."""
    import torch.distributed._functional_collectives as collectives

    if not terms:
        return []
    count = bucket.mesh.size(bucket.dim)
    rows = [
        term.unflatten(cut, (count, -1)).movedim(cut, 0)
        for term, cut in zip(terms, bucket.cuts, strict=True)
    ]
    flat = torch.cat([row.flatten(1) for row in rows], 1).view(-1)
    flat = _waited(collectives.reduce_scatter_single(flat, "sum", 0, (bucket.mesh, bucket.dim)))
    parts = flat.split([row[0].numel() for row in rows])
    return [part.view(row.shape[1:]) for part, row in zip(parts, rows, strict=True)]


def _placed(tensors: Sequence[Any], targets: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Distributed tensors in other placements; sums along one dimension by one all-reduce."""
    found = list(tensors)
    groups: dict[Any, list[int]] = {}
    for k, (tensor, (mesh, wanted)) in enumerate(zip(tensors, targets, strict=True)):
        dims = [d for d in range(mesh.ndim) if tensor.placements[d] != wanted[d]]
        all_sums = all([_is_sum(tensor.placements[d], wanted[d]) for d in dims])
        if not all_sums or tensor.device_mesh != mesh:
            found[k] = tensor.redistribute(mesh, wanted)
        else:
            for dim in dims:
                groups.setdefault((mesh, dim, tensor.dtype), []).append(k)
    for (mesh, dim, _), places in groups.items():
        sums = _all_reduced(mesh, dim, [found[k] for k in places])
        for k, whole in zip(places, sums, strict=True):
            found[k] = whole
    return found


def _is_sum(have: Any, wanted: Any) -> bool:
    return bool(have.is_partial("sum") and wanted.is_replicate())


def _all_reduced(mesh: Any, dim: int, tensors: Sequence[Any]) -> list[Any]:
    """Terms of sums along a dimension of the mesh to the sums, by one all-reduce."""
    import torch.distributed._functional_collectives as collectives
    from torch.distributed.tensor import Replicate

    terms = [tensor._local_tensor for tensor in tensors]
    flat = torch.cat([term.reshape(-1) for term in terms])
    flat = _waited(collectives.all_reduce(flat, "sum", (mesh, dim)))
    found = []
    sums = flat.split([term.numel() for term in terms])
    for tensor, term, part in zip(tensors, terms, sums, strict=True):
        told = list(tensor.placements)
        told[dim] = Replicate()
        found.append(distributed(part.view(term.shape), mesh, tuple(told), tensor.shape))
    return found


def _waited(tensor: Any) -> Tensor:
    """The tensor that a collective computes, which in eager code is still on its way."""
    wait = getattr(tensor, "wait", None)
    return tensor if wait is None else wait()  # type: ignore[no-any-return]  # a Tensor


def distributed(local: Tensor, mesh: Any, placements: tuple[Any, ...], shape: Any) -> Any:
    """What this process holds as a distributed tensor of this shape, without a graph."""
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    stride = torch._prims_common.make_contiguous_strides_for(shape)
    meta = TensorMeta(torch.Size(shape), stride, local.dtype)
    return shards.with_spec(local, DTensorSpec(mesh, placements, tensor_meta=meta))
