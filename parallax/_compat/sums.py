"""Sums that tensor parallelism waits for, where torch's tensor-parallel styles have them.

What a layer computes from a weight that is cut along its inputs is a term of a sum, in each process
another; and so is, in backward, the gradient of the input of a layer that is cut along its outputs.
Left alone, distributed tensors sum when an operator needs that, some of them several times and in
parts that are gathered at once. Here a result is summed where its layer ends, and a gradient where
it is complete, before it goes on.

Within a transform, and while dynamo traces, each is a node with a derivative: the classes of
tensors are not known before the code runs.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax._compat import buckets, dynamo, functorch, shards

__all__ = ["entering", "leaving"]


def entering(value: Any, names: tuple[str, ...]) -> Any:
    """An argument of a layer, whose gradient is to be summed along these dimensions of the mesh.

    Args:
        value: what is no distributed tensor comes back as it is.
        names: of the dimensions.
    """
    if not isinstance(value, Tensor):
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
        return _entering(value, names)
    taped = shards.is_distributed(value) and value.grad_fn is not None
    if not taped:  # of a transform; or a user's own, on which no hook is left
        return _entering(value, names)
    if value.requires_grad and torch.is_grad_enabled():
        # On the whole gradient: that of all layers which take this tensor, by one collective.
        value.register_hook(lambda grad: _summed(grad, names))
    return value


def leaving(value: Any, names: tuple[str, ...]) -> Any:
    """A result of a layer, summed along these dimensions of the mesh if it waits for that.

    Args:
        value: a tensor, or a tuple or list of them; others come back as they are.
        names: of the dimensions.
    """
    if type(value) in (tuple, list):
        return type(value)([leaving(one, names) for one in value])
    if not isinstance(value, Tensor):
        return value
    if dynamo.is_compiling():
        _allow_in_graph()
    return _leaving(value, names)


def _without(value: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The placements of a distributed tensor with the sums along some dimensions computed."""
    from torch.distributed.tensor import Replicate

    known = value.device_mesh.mesh_dim_names or ("",) * value.device_mesh.ndim
    told = zip(known, value.placements, strict=True)
    return tuple([Replicate() if n in names and at.is_partial("sum") else at for n, at in told])


def _summed(grad: Any, names: tuple[str, ...]) -> Any:
    if not shards.is_distributed(grad):
        return grad
    return buckets.as_placed(grad, grad.device_mesh, _without(grad, names))


def _entering(value: Tensor, names: tuple[str, ...]) -> Tensor:
    known = value.requires_grad and shards.is_distributed(functorch.innermost(value))
    return _Enter.apply(value, names) if known else value  # type: ignore[no-untyped-call]  # it is torch's


def _leaving(value: Tensor, names: tuple[str, ...]) -> Tensor:
    inner: Any = functorch.innermost(value)
    if shards.is_distributed(inner) and _without(inner, names) != inner.placements:
        return _Leave.apply(value, names)  # type: ignore[no-untyped-call, no-any-return]  # it is torch's
    return value


@dynamo.constant_in_traces
def _allow_in_graph() -> None:
    """Has dynamo take each function as one node; loads dynamo, which runs already."""
    from torch._dynamo import allow_in_graph

    allow_in_graph(_entering)
    allow_in_graph(_leaving)


class _Enter(torch.autograd.Function):
    """The same tensor; backward is a sum."""

    @staticmethod
    def forward(value: Any, names: tuple[str, ...]) -> Any:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.names = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Enter.apply(*args), in_dims[0]  # type: ignore[no-untyped-call]  # it is torch's

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _leaving(grads[0], ctx.names), None


class _Leave(torch.autograd.Function):
    """A sum; backward hands the gradient on."""

    @staticmethod
    def forward(value: Any, names: tuple[str, ...]) -> Any:
        return _summed(value, names)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.names = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Leave.apply(*args), in_dims[0]  # type: ignore[no-untyped-call]  # it is torch's

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _entering(grads[0], ctx.names), None
