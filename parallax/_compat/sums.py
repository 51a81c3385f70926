"""What tensor parallelism sends, where torch's tensor-parallel styles have it.

What a layer computes from a weight that is cut along its inputs is a term of a sum, in each process
another; and so is, in backward, the gradient of the input of a layer that is cut along its outputs.
Left alone, distributed tensors sum when an operator needs that, some of them several times and in
parts that are gathered at once. Here a result is summed where its layer ends, and a gradient where
it is complete, before it goes on.

Where activations are cut along a dimension between the layers (``sequence``), a result is reduced
and scattered in place of that, and what a layer takes is gathered; backward does the reverse.

Within a transform, and while dynamo traces, each is a node with a derivative: the classes of
tensors are not known before the code runs.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from parallax._compat import buckets, dynamo, functorch, shards

__all__ = ["Along", "cut_as", "entering", "leaving", "uncut"]

Along: TypeAlias = tuple[tuple[str, int | None], ...]
"""Dimensions of a mesh, each with that of activations which is cut along it between the layers."""

# For each name of a dimension the placement along it; without one, sums are computed.
_Wanted: TypeAlias = tuple[tuple[str, Any], ...]

# What was gathered of an activation, for the next layer that takes it; it lives as long.
_gathered: Any = WeakTensorKeyDictionary()


def entering(value: Any, along: Along) -> Any:
    """An argument of a layer, gathered if it is cut; its gradient is summed, and cut again.

    Args:
        value: what is no distributed tensor comes back as it is.
        along: the dimensions of the mesh.
    """
    if not isinstance(value, Tensor):
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
        return _entering(value, along)
    if not shards.is_distributed(value):  # of a transform, or plain
        return _entering(value, along)
    wanted = _to_enter(value, along)
    placed: Any = value
    # A user's own tensor is left without a hook.
    if value.grad_fn is None or _toward(value, wanted) != placed.placements:
        return _entering(value, along)
    if value.requires_grad and torch.is_grad_enabled():
        # On the whole gradient: that of all layers which take this tensor, by one collective.
        value.register_hook(lambda grad: _placed(grad, wanted))
    return value


def leaving(value: Any, along: Along) -> Any:
    """A result of a layer, summed along these dimensions of the mesh if it waits for that.

    Args:
        value: a tensor, or a tuple or list of them; others come back as they are.
        along: the dimensions.
    """
    if type(value) in (tuple, list):
        return type(value)([leaving(one, along) for one in value])
    if not isinstance(value, Tensor):
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
    return _leaving(value, along)


def uncut(value: Any, *kept: int) -> Any:
    """A tensor that is cut along no other dimensions than these, for an operator that needs it.

    Args:
        value: what is no distributed tensor comes back as it is.
        *kept: dimensions.
    """
    if not isinstance(value, Tensor) or not shards.are_known():
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
    return _uncut(value, kept)


def cut_as(value: Tensor, like: Tensor) -> Tensor:
    """A tensor that is cut as another of its shape is; both may be plain."""
    if not shards.are_known():
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
    return _cut_as(value, like)


# -- where to -------------------------------------------------------------------------------------


def _named(value: Any) -> dict[str, Any]:
    """The placements of a distributed tensor by the names of the dimensions of its mesh."""
    names = value.device_mesh.mesh_dim_names or ()
    return dict(zip(names, value.placements, strict=bool(names)))


def _to_enter(value: Any, along: Along) -> _Wanted:
    """What is cut along a sequence is to be whole; features are the last dimension."""
    from torch.distributed.tensor import Replicate

    told = _named(value)
    return tuple([
        (name, Replicate() if at is not None and at < value.ndim - 1 and name in told
         and told[name].is_shard(at) else None)
        for name, at in along
    ])  # fmt: skip


def _to_leave(value: Any, along: Along) -> _Wanted:
    """Sums are to be cut along the sequence, if that divides."""
    from torch.distributed.tensor import Shard

    told, mesh = _named(value), value.device_mesh
    found: list[tuple[str, Any]] = []
    for name, at in along:
        cut = None
        if at is not None and name in told and at < value.ndim - 1:
            free = not any([one.is_shard(at) for one in told.values()])
            even = value.shape[at] % mesh[name].size() == 0
            cut = Shard(at) if free and even and told[name].is_partial("sum") else None
        found.append((name, cut))
    return tuple(found)


def _uncut(value: Tensor, kept: tuple[int, ...]) -> Tensor:
    from torch.distributed.tensor import Replicate

    inner: Any = functorch.innermost(value)
    if not shards.is_distributed(inner):
        return value
    dims = functorch.innermost_dims(value)
    cut = [dim for k, dim in enumerate(dims) if k not in kept]
    wanted = tuple([
        (name, Replicate()) for name, at in _named(inner).items()
        if at.is_shard() and at.dim in cut
    ])  # fmt: skip
    return _moved(value, wanted) if wanted else value


def _cut_as(value: Tensor, like: Tensor) -> Tensor:
    inner: Any = functorch.innermost(value)
    leaf: Any = functorch.innermost(like)
    if not (shards.is_distributed(inner) and shards.is_distributed(leaf)):
        return value
    wanted = tuple(_named(leaf).items())
    return _moved(value, wanted) if _toward(inner, wanted) != inner.placements else value


def _toward(value: Any, wanted: _Wanted) -> tuple[Any, ...]:
    """The placements of a distributed tensor with those that are wanted, and with no sums."""
    from torch.distributed.tensor import Replicate

    told, asked = _named(value), dict(wanted)
    if not told:
        return tuple(value.placements)
    for name in asked.keys() & told.keys():
        if told[name].is_partial("sum"):
            told[name] = asked[name] or Replicate()
        elif asked[name] is not None:
            told[name] = asked[name]
    return tuple(told.values())


def _back(value: Any, wanted: _Wanted) -> _Wanted:
    """What is wanted of the gradient of a tensor that was placed so."""
    from torch.distributed.tensor import Replicate

    told = _named(value)
    return tuple([
        (name, None if at is None else Replicate() if told[name].is_partial() else told[name])
        for name, at in wanted
    ])  # fmt: skip


# -- nodes ----------------------------------------------------------------------------------------


def _placed(value: Any, wanted: _Wanted) -> Any:
    if not shards.is_distributed(value):
        return value
    return buckets.as_placed(value, value.device_mesh, _toward(value, wanted))


def _moved(value: Tensor, wanted: _Wanted) -> Tensor:
    """The tensor in other placements; its gradient is summed whether they are others or not."""
    inner: Any = functorch.innermost(value)
    if not shards.is_distributed(inner):
        return value
    if value.requires_grad or _toward(inner, wanted) != inner.placements:
        return _Move.apply(value, wanted)  # type: ignore[no-untyped-call, no-any-return]  # it is torch's
    return value


def _entering(value: Tensor, along: Along) -> Tensor:
    inner: Any = functorch.innermost(value)
    if not shards.is_distributed(inner):
        return value
    wanted = _to_enter(inner, along)
    # What an inner transform makes of an outer one's tensor is over when that transform ends.
    lives = functorch.level_of(value) == functorch.current_level()
    if lives and _toward(inner, wanted) != inner.placements:
        return _gathered_once(value, wanted)
    return _moved(value, wanted)


def _leaving(value: Tensor, along: Along) -> Tensor:
    inner: Any = functorch.innermost(value)
    if not shards.is_distributed(inner):
        return value
    wanted = _to_leave(inner, along)
    return _moved(value, wanted) if _toward(inner, wanted) != inner.placements else value


def _gathered_once(value: Any, wanted: _Wanted) -> Tensor:
    """What all layers that take a tensor compute with; their gradients are scattered together."""
    made_for = wanted, functorch.version_of(value), torch.is_grad_enabled()
    known, whole = _gathered.get(value, (None, None))
    if known != made_for:
        whole = _moved(value, wanted)
        _gathered[value] = made_for, whole
    return whole  # type: ignore[no-any-return]  # a Tensor


@dynamo.constant_in_traces
def _allow_in_graph() -> None:
    """Has dynamo take each function as one node; loads dynamo, which runs already."""
    from torch._dynamo import allow_in_graph

    allow_in_graph(_cut_as)
    allow_in_graph(_entering)
    allow_in_graph(_leaving)
    allow_in_graph(_uncut)


class _Move(torch.autograd.Function):
    """The same values in other placements; backward places the gradient as the tensor was."""

    @staticmethod
    def forward(value: Any, wanted: _Wanted) -> Any:
        placed = _placed(value, wanted)
        return value.view_as(value) if placed is value else placed

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        value, wanted = inputs
        ctx.back = _back(functorch.innermost(value), wanted)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Move.apply(*args), in_dims[0]  # type: ignore[no-untyped-call]  # it is torch's

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _moved(grads[0], ctx.back), None
