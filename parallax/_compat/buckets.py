"""Several distributed tensors in one collective, without derivatives.

A bucket is what one collective puts together. Gathers take its tensors as they are, so that nothing
is copied where they are cut along their first dimension. Sums are laid out in one flat tensor: it
is filled as the terms come, so that no gradient waits for the others.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import functorch, shards

__all__ = [
    "Bucket", "Flat", "all_gathered", "as_part", "as_placed", "buckets_of", "cut",
    "distributed", "is_sum", "known_buckets_of", "placed", "waiting",
]  # fmt: skip


class Bucket(NamedTuple):
    """What is put together by one collective.

    Attributes:
        mesh: of all its tensors.
        dim: the dimension of the mesh along which they are put together.
        parts: torch's description of each tensor in parts.
        wholes: that of each tensor when it is put together.
        cuts: which dimension of each tensor is cut.
        places: of each tensor among those that were given.
    """

    mesh: Any
    dim: int
    parts: tuple[Any, ...]
    wholes: tuple[Any, ...]
    cuts: tuple[int, ...]
    places: tuple[int, ...]

    def of(self, chosen: Sequence[int]) -> Bucket:
        """The bucket of some of the tensors."""
        lists = [tuple([items[k] for k in chosen]) for items in self[2:]]
        return Bucket(self.mesh, self.dim, *lists)

    def mapped(self, which: Sequence[bool], count: int) -> Bucket:
        """The bucket of all members of a ``vmap``, which come first.

        Args:
            which: for each tensor whether it is mapped.
            count: how many members there are.
        """
        parts = [_stacked(spec, count) if new else spec for spec, new in _zip(self.parts, which)]
        wholes = [_stacked(spec, count) if new else spec for spec, new in _zip(self.wholes, which)]
        cuts = [at + new for at, new in _zip(self.cuts, which)]
        return Bucket(self.mesh, self.dim, tuple(parts), tuple(wholes), tuple(cuts), self.places)


_zip = partial(zip, strict=True)


def _stacked(spec: Any, count: int) -> Any:
    """The description of as many tensors as one, stacked along a new first dimension."""
    from torch.distributed.tensor import Shard

    told = [Shard(at.dim + 1) if at.is_shard() else at for at in spec.placements]
    meta = spec.tensor_meta
    return _described(spec.mesh, tuple(told), (count, *meta.shape), meta.dtype)


def buckets_of(leaves: Sequence[Tensor], name: str) -> list[Bucket]:
    """The tensors that are cut along the dimension of their mesh of this name, by mesh and dtype.

    Args:
        leaves: distributed or not, in whatever wrappers of transforms.
        name: of the dimension of the mesh.
    """
    return _buckets(_specs(leaves), name)


def known_buckets_of(leaves: Sequence[Tensor], name: str) -> list[Bucket]:
    """As ``buckets_of``, found once for leaves that are spread alike; eager only."""
    specs = _specs(leaves)
    # Meshes that are equal may be of other process groups.
    return _found_once(specs, tuple([id(spec and spec.mesh) for spec in specs]), name)


@lru_cache(maxsize=256)
def _found_once(specs: tuple[Any, ...], _: tuple[int, ...], name: str) -> list[Bucket]:
    return _buckets(specs, name)


def _specs(leaves: Sequence[Tensor]) -> tuple[Any, ...]:
    """Torch's description of each distributed tensor; ``None`` for others."""
    return tuple([_spec(leaf) for leaf in leaves])


def _spec(leaf: Tensor) -> Any:
    """Torch's description; of one that is mapped that of a member, unless these are in parts."""
    inner: Any = functorch.innermost(leaf)
    if not shards.is_distributed(inner):
        return None
    if inner.ndim == leaf.ndim:
        return inner._spec
    from torch.distributed.tensor import Shard

    dims, told = functorch.innermost_dims(leaf), []
    for at in inner.placements:
        if at.is_shard() and at.dim not in dims:
            return None
        told.append(Shard(dims.index(at.dim)) if at.is_shard() else at)
    return _described(inner.device_mesh, tuple(told), leaf.shape, leaf.dtype)


def _buckets(specs: Sequence[Any], name: str) -> list[Bucket]:
    groups: dict[Any, list[int]] = {}
    for k, spec in enumerate(specs):
        if spec is not None and name in (spec.mesh.mesh_dim_names or ()):
            dim = spec.mesh.mesh_dim_names.index(name)
            if _is_evenly_cut(spec, dim):
                groups.setdefault((spec.mesh, dim, spec.tensor_meta.dtype), []).append(k)
    return [_bucket(mesh, dim, specs, places) for (mesh, dim, _), places in groups.items()]


def _bucket(mesh: Any, dim: int, specs: Sequence[Any], places: list[int]) -> Bucket:
    from torch.distributed.tensor import Replicate

    parts, wholes, cuts = [], [], []
    for spec in [specs[k] for k in places]:
        told, shape, dtype = spec.placements, spec.tensor_meta.shape, spec.tensor_meta.dtype
        cuts.append(told[dim].dim)
        parts.append(_described(mesh, told, shape, dtype))
        whole = (*told[:dim], Replicate(), *told[dim + 1 :])
        wholes.append(_described(mesh, whole, shape, dtype))
    return Bucket(mesh, dim, tuple(parts), tuple(wholes), tuple(cuts), tuple(places))


def _is_evenly_cut(spec: Any, dim: int) -> bool:
    """Whether the parts of a tensor along a dimension of its mesh follow each other, all alike.

    Others are left to torch, which gathers them one by one where an operator needs that.
    """
    placement = spec.placements[dim]
    if not placement.is_shard():
        return False
    others = [p for k, p in enumerate(spec.placements) if k != dim and p.is_shard(placement.dim)]
    return not others and spec.tensor_meta.shape[placement.dim] % spec.mesh.size(dim) == 0


def _described(mesh: Any, placements: tuple[Any, ...], shape: Any, dtype: Any) -> Any:
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    stride = torch._prims_common.make_contiguous_strides_for(shape)
    return DTensorSpec(mesh, placements, tensor_meta=TensorMeta(torch.Size(shape), stride, dtype))


def distributed(local: Tensor, mesh: Any, placements: tuple[Any, ...], shape: Any) -> Any:
    """What this process holds as a distributed tensor of this shape, without a graph."""
    return shards.with_spec(local, _described(mesh, placements, shape, local.dtype))


# -- gathers --------------------------------------------------------------------------------------


def all_gathered(bucket: Bucket, parts: Sequence[Tensor]) -> list[Tensor]:
    """What this process holds of the whole tensors, from what it holds of them in parts."""
    import torch.distributed._functional_collectives as collectives

    group = (bucket.mesh, bucket.dim)
    given = [part.contiguous() for part in parts]
    found = _waited(collectives.all_gather_single_coalesced(given, group))
    return [
        rows if at == 0 else _moved(rows, part, at, bucket.mesh.size(bucket.dim))
        for rows, part, at in zip(found, parts, bucket.cuts, strict=True)
    ]


def _moved(rows: Tensor, part: Tensor, at: int, count: int) -> Tensor:
    """Parts that stand below each other, put together along the dimension that was cut."""
    apart = rows.view(count, *part.shape)
    return apart.movedim(0, at).flatten(at, at + 1)


# -- sums -----------------------------------------------------------------------------------------


class Flat:
    """Terms of sums, of which this process is to get its parts by one reduce-scatter.

    Args:
        bucket: of the tensors.
        like: a term, for dtype and device.
    """

    __slots__ = ("_bucket", "_rows", "_shapes", "_starts")

    def __init__(self, bucket: Bucket, like: Tensor) -> None:
        count = bucket.mesh.size(bucket.dim)
        self._bucket = bucket
        self._shapes = [_local_shape(spec) for spec in bucket.parts]
        self._starts = [0]
        for shape in self._shapes:
            self._starts.append(self._starts[-1] + shape.numel())
        self._rows = like.new_empty((count, self._starts[-1]))

    def fits(self, term: Tensor) -> bool:
        """Whether a term may be among the others."""
        return term.dtype == self._rows.dtype and term.device == self._rows.device

    def put(self, k: int, term: Tensor) -> None:
        """Writes the term of a tensor's sum."""
        shape, at = self._shapes[k], self._bucket.cuts[k]
        rows = self._rows[:, self._starts[k] : self._starts[k + 1]]
        count = rows.shape[0]
        rows.view(count, *shape).copy_(term.unflatten(at, (count, -1)).movedim(at, 0))

    def scattered(self) -> list[Tensor]:
        """This process's parts of the sums; arbitrary numbers where no term was put."""
        import torch.distributed._functional_collectives as collectives

        group = (self._bucket.mesh, self._bucket.dim)
        found = collectives.reduce_scatter_single(self._rows.view(-1), "sum", 0, group)
        sums = _waited([found])[0].split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(sums, self._shapes, strict=True)]


def _local_shape(spec: Any) -> torch.Size:
    """The shape of what each process holds; all hold alike."""
    shape = list(spec.tensor_meta.shape)
    for dim, placement in enumerate(spec.placements):
        if placement.is_shard():
            shape[placement.dim] //= spec.mesh.size(dim)
    return torch.Size(shape)


def waiting(bucket: Bucket, k: int, grad: Any) -> tuple[Any, ...]:
    """The placements in which the gradient of a whole tensor is put into a ``Flat``.

    Sums over other dimensions wait: of parts they are shorter.
    """
    whole = bucket.wholes[k].placements
    return tuple([
        have if dim == bucket.dim or is_sum(have, want) else want
        for dim, (have, want) in enumerate(zip(grad.placements, whole, strict=True))
    ])  # fmt: skip


def cut(bucket: Bucket, grads: Sequence[Any]) -> tuple[Tensor, ...]:
    """The gradients of the parts, from those of the whole tensors, however these are placed."""
    mesh, dim = bucket.mesh, bucket.dim
    found = list(grads)
    summed = [k for k, grad in enumerate(grads) if grad.placements[dim].is_partial("sum")]
    for dtype in dict.fromkeys([grads[k].dtype for k in summed]):
        chosen = [k for k in summed if grads[k].dtype == dtype]
        told = [waiting(bucket, k, grads[k]) for k in chosen]
        terms = [as_placed(grads[k], mesh, at) for k, at in zip(chosen, told, strict=True)]
        flat = Flat(bucket.of(chosen), terms[0]._local_tensor)
        for index, term in enumerate(terms):
            flat.put(index, term._local_tensor)
        for k, at, part in zip(chosen, told, flat.scattered(), strict=True):
            found[k] = as_part(bucket, k, part, at)
    return tuple(placed(found, bucket.parts))


def as_placed(tensor: Any, mesh: Any, placements: tuple[Any, ...]) -> Any:
    """A tensor in other placements, itself if it has them."""
    there = tensor.device_mesh == mesh and tensor.placements == placements
    return tensor if there else tensor.redistribute(mesh, placements)


def as_part(bucket: Bucket, k: int, local: Tensor, waiting: tuple[Any, ...]) -> Any:
    """A part of a sum as a distributed tensor, in the placements of a term but for the cut."""
    dim, spec = bucket.dim, bucket.parts[k]
    told = (*waiting[:dim], spec.placements[dim], *waiting[dim + 1 :])
    if told == spec.placements and local.dtype == spec.tensor_meta.dtype:
        return shards.with_spec(local, spec)
    return distributed(local, bucket.mesh, told, spec.tensor_meta.shape)


def placed(tensors: Sequence[Any], like: Sequence[Any]) -> list[Any]:
    """Distributed tensors in other placements; sums along one dimension by one all-reduce.

    Args:
        tensors: distributed.
        like: torch's description of a tensor that is placed as each is to be.
    """
    found = list(tensors)
    groups: dict[Any, list[int]] = {}
    for k, (tensor, spec) in enumerate(zip(tensors, like, strict=True)):
        mesh, wanted = spec.mesh, spec.placements
        if tensor.device_mesh != mesh:
            found[k] = tensor.redistribute(mesh, wanted)
            continue
        have = tensor.placements
        dims = [dim for dim in range(mesh.ndim) if have[dim] != wanted[dim]]
        if not all([is_sum(have[dim], wanted[dim]) for dim in dims]):
            found[k] = tensor.redistribute(mesh, wanted)
        else:
            for dim in dims:
                groups.setdefault((mesh, dim, tensor.dtype), []).append(k)
    for (mesh, dim, _), places in groups.items():
        sums = _all_reduced(mesh, dim, [(found[k], like[k]) for k in places])
        for k, whole in zip(places, sums, strict=True):
            found[k] = whole
    return found


def is_sum(have: Any, wanted: Any) -> bool:
    """Whether one placement is the sum that the other waits for."""
    return bool(have.is_partial("sum") and wanted.is_replicate())


def _all_reduced(mesh: Any, dim: int, pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
    """Terms of sums along a dimension of the mesh to the sums, by one all-reduce.

    Args:
        mesh: of all tensors.
        dim: of the mesh.
        pairs: each tensor with a description that may be its own then: to make one takes longer
            than all else here.
    """
    import torch.distributed._functional_collectives as collectives
    from torch.distributed.tensor import Replicate

    terms = [tensor._local_tensor for tensor, _ in pairs]
    flat = torch.cat([term.reshape(-1) for term in terms])
    if type(flat) is Tensor:  # neither traced nor of several ranks; a function would copy it first
        torch.distributed.all_reduce(flat, group=mesh.get_group(dim))
    else:
        flat = _waited([collectives.all_reduce(flat, "sum", (mesh, dim))])[0]
    found = []
    sums = flat.split([term.numel() for term in terms])
    for (tensor, like), term, part in zip(pairs, terms, sums, strict=True):
        told = (*tensor.placements[:dim], Replicate(), *tensor.placements[dim + 1 :])
        whole = part.view(term.shape)
        if like.placements == told and _is_of(like.tensor_meta, tensor):
            found.append(shards.with_spec(whole, like))
        else:
            found.append(distributed(whole, mesh, told, tensor.shape))
    return found


def _is_of(meta: Any, tensor: Any) -> bool:
    """Whether a shape, strides and a dtype are those of a tensor, if it were contiguous."""
    if meta.dtype != tensor.dtype or meta.shape != tensor.shape:
        return False
    step = 1
    for size, stride in zip(reversed(meta.shape), reversed(meta.stride), strict=True):
        if stride != step and size != 1:
            return False
        step *= size
    return True


def _waited(tensors: Sequence[Any]) -> list[Tensor]:
    """The tensors that a collective computes, which in eager code are still on their way."""
    return [tensor.wait() if hasattr(tensor, "wait") else tensor for tensor in tensors]
