"""What torch's distributed tensors lack, told to torch: rules for kernels, and right gradients.

- The attention kernel of the CPU has no rule how it is cut. Here it may be, by batch and by head.
- The backward of some losses with ``reduction="mean"`` divides by the size of what the kernel is
  given. Of distributed tensors that is the part of one process, so the gradient is multiplied by
  the number of parts (seen in torch 2.13 and 2.14). Here it is computed by operators that are
  right. The losses that are not named are right anyway: their means are operators of their own.
- The rule of the negative log likelihood, and so of cross-entropy, takes the mean of the means of
  each process. That is another number where targets are ignored, or classes have weights, and not
  as many of them in each (seen in torch 2.13 and 2.14). Here it is the sum over the sum of weights.
- What ``any`` returns waits for a sum, so that it counts processes where it is turned into a number
  first (seen in torch 2.13 and 2.14). Here it is the opposite of ``all``, which is right.
- Backward of some activations and poolings, and some paddings, have no rule. Here what they compute
  entry by entry, or image by image, is cut in these dimensions.
- ``squeeze_`` leaves a distributed tensor the shape that it had, unless a cut moves to another
  dimension (seen in torch 2.13 and 2.14). A vector times a matrix ends with one, and was a matrix.
- A number that is read of a tensor in parts is that of one process, another in each, where no more
  was computed than the term of a sum. On the mesh of a plan that is refused; tensors that a user
  spreads over another mesh are read as torch reads them.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from parallax._compat import buckets, dynamo, shards

__all__ = ["complete", "refuse_numbers_on"]

_aten = torch.ops.aten
_LOSSES = (
    _aten.binary_cross_entropy_backward.default,
    _aten.huber_loss_backward.default,
    _aten.mse_loss_backward.default,
    _aten.smooth_l1_loss_backward.default,
    _aten.soft_margin_loss_backward.default,
)
_DECOMPOSED = (*_LOSSES, _aten.log_sigmoid_backward.default, _aten._prelu_kernel_backward.default)
_LIKELIHOODS = (_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default)
_MEAN = 1  # of the reductions of torch's kernels; a sum is 2
_ALL = {
    _aten.any.default: _aten.all.default,
    _aten.any.dim: _aten.all.dim,
    _aten.any.dims: _aten.all.dims,
}
_SQUEEZES = {
    _aten.squeeze_.default: _aten.squeeze.default,
    _aten.squeeze_.dim: _aten.squeeze.dim,
    _aten.squeeze_.dims: _aten.squeeze.dims,
}

# By identity: of two that are equal each may be the last that is left.
_meshes: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def refuse_numbers_on(mesh: Any) -> None:
    """Has no number be read of a tensor that is in parts over this mesh, or one equal to it."""
    _meshes[id(mesh)] = mesh


@dynamo.constant_in_traces
def complete() -> None:
    """Tells torch, once, and not before there can be a distributed tensor."""
    package = sys.modules.get("torch.distributed.tensor")
    if hasattr(package, "DTensor"):
        _tell(package.DTensor)  # type: ignore[union-attr]  # it has one


@functools.cache
def _tell(kind: Any) -> None:
    from torch.distributed.tensor.experimental import register_sharding

    handlers = kind._op_dispatcher._custom_op_handlers
    for op in _DECOMPOSED:
        handlers.setdefault(op, _decomposed)
    for likelihood in _LIKELIHOODS:
        handlers.setdefault(likelihood, _likelihood)
    for one in _ALL:
        handlers.setdefault(one, _any)
    for squeeze in _SQUEEZES:
        handlers.setdefault(squeeze, _squeezed)
    handlers.setdefault(_aten._local_scalar_dense.default, _number)
    propagator = kind._op_dispatcher.sharding_propagator
    for op, rule in _ATTENTION.items():
        register_sharding(op)(rule)
        # What is found for some arguments is kept: it depends on the mask as well.
        propagator.op_to_schema_info[op].static_kwargkey = ["attn_mask"]
    for last, ops in _APART.items():
        for op in ops:
            register_sharding(op)(functools.partial(_by_first, last, len(op._schema.returns)))


def _decomposed(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator written by others, of which torch knows the rules."""
    from torch._decomp import decomposition_table

    return decomposition_table[op](*args, **kwargs)


def _likelihood(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The negative log likelihood and the sum of the weights of its mean, from those of each part.

    Of a mean both it and its backward divide by the sum of the weights: that is put together here.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    values, target, weight, reduction, ignored = args
    for one in (values, target, weight):
        if one is not None and not shards.is_distributed(one):
            raise RuntimeError(f"{op} got mixed torch.Tensor and DTensor")  # as torch says it
    mesh, channel = values.device_mesh, min(1, values.ndim - 1)
    # What was flattened with a cut behind others is cut in strides, which torch calls no shard.
    kept: list[Any] = [
        at if (at.is_shard() and at.dim != channel) or getattr(at, "dim", channel) < channel
        else Replicate()
        for at in values.placements
    ]  # fmt: skip
    rows = [Shard(at.dim - 1) if getattr(at, "dim", 0) > channel else at for at in kept]
    terms = [at if at.is_replicate() else Partial() for at in rows]
    placed = [(values, kept), (target, rows)]
    given = [buckets.as_placed(one, mesh, tuple(at))._local_tensor for one, at in placed]
    given.append(None if weight is None else shards.whole(weight))
    loss, total = op(*given, 2 if reduction == _MEAN else reduction, ignored, **kwargs)
    if reduction == 0:
        whole = tuple([Replicate()] * mesh.ndim)
        found = buckets.distributed(loss, mesh, tuple(rows), target.shape)
        return found, buckets.distributed(total, mesh, whole, ())
    total = buckets.distributed(total, mesh, tuple(terms), ())
    if reduction == _MEAN:
        total = shards.summed(total)
        loss = loss / total._local_tensor
    return buckets.distributed(loss, mesh, tuple(terms), ()), total


def _any(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Whether an entry is not zero."""
    tensor, *rest = args
    found = _ALL[op](tensor.logical_not(), *rest, **kwargs).logical_not()
    return found.to(torch.uint8) if tensor.dtype is torch.uint8 else found  # as torch does


def _squeezed(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tensor that loses dimensions of size 1, in place: what it holds, its cuts and its shape."""
    from torch.utils._python_dispatch import return_and_correct_aliasing

    tensor, found = args[0], _SQUEEZES[op](*args, **kwargs)
    tensor._local_tensor, tensor._spec = found._local_tensor, found._spec
    return return_and_correct_aliasing(op, args, kwargs, tensor)


def _number(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The number in a tensor, which is the same in all processes on the mesh of a plan."""
    (tensor,) = args
    whole = all([placement.is_replicate() for placement in tensor.placements])
    # Torch keeps what it finds for one mesh for its equals, so results may be on any of them.
    if not whole and tensor.device_mesh in list(_meshes.values()):
        raise RuntimeError(
            f"item(), float() or bool() of a distributed tensor in parts ({shards.shown(tensor)}): "
            f"each process holds another number. Put it together, in every process: "
            f"plan.gather(loss).item(), or loss.full_tensor().item()"
        )
    return op(tensor._local_tensor)


_Rules = Sequence[tuple[list[Any], list[Any]]]


def _attention(*given: Any, **options: Any) -> _Rules:
    """How the results and the arguments of attention may be cut along one dimension of a mesh."""
    return _by_batch_or_head(2, 3, given, options.get("attn_mask"))


def _attention_backward(*given: Any, **options: Any) -> _Rules:
    return _by_batch_or_head(3, 6, given, options.get("attn_mask"))


def _by_batch_or_head(results: int, tensors: int, given: Sequence[Any], mask: Any) -> _Rules:
    """All cut alike or none; torch gives each process a mask as it is, so that one stays whole."""
    from torch.distributed.tensor import Replicate, Shard

    cuts: list[Any] = [Replicate(), Shard(0), Shard(1)]
    masks: list[Any] = []
    if mask is not None:
        if not all([placement.is_replicate() for placement in mask.placements]):
            raise RuntimeError(
                f"scaled_dot_product_attention(attn_mask=): a mask is taken whole, and this one is "
                f"cut, {mask.placements}. Write attn_mask.redistribute(placements=[Replicate()])"
            )
        # Its dimensions are counted from the last; one of size 1 is for all.
        cuts = [c for c in cuts if c.is_replicate() or _is_for_all(mask, mask.ndim - 4 + c.dim)]
        masks = [Replicate()]
    numbers: list[Any] = [None] * (len(given) - tensors)
    return [([cut] * results, [cut] * tensors + numbers + masks) for cut in cuts]


def _by_first(last: int, results: int, *given: Any, **_: Any) -> _Rules:
    """All tensors cut alike, along any dimension but the last ones, or none."""
    from torch.distributed.tensor import Replicate, Shard

    cuts = [Replicate(), *[Shard(dim) for dim in range(given[0].ndim - last)]]
    tensors = [hasattr(one, "tensor_meta") for one in given]
    return [([cut] * results, [cut if is_one else None for is_one in tensors]) for cut in cuts]


def _is_for_all(mask: Any, dim: int) -> bool:
    return dim < 0 or mask.shape[dim] == 1


_ATTENTION: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}

# By how many of the last dimensions they compute with together.
_APART: dict[int, tuple[Any, ...]] = {
    0: (
        _aten.elu_backward.default, _aten.hardshrink_backward.default,
        _aten.hardsigmoid_backward.default, _aten.hardswish_backward.default,
        _aten.hardtanh_backward.default, _aten.leaky_relu_backward.default,
        _aten.mish_backward.default, _aten.softplus_backward.default,
        _aten.softshrink_backward.default,
    ),
    1: (
        _aten.reflection_pad1d.default, _aten.reflection_pad1d_backward.default,
        _aten.replication_pad1d.default, _aten.replication_pad1d_backward.default,
    ),
    2: (
        _aten.adaptive_max_pool2d_backward.default, _aten.avg_pool2d_backward.default,
        _aten.reflection_pad2d.default, _aten.reflection_pad2d_backward.default,
        _aten.replication_pad2d.default, _aten.replication_pad2d_backward.default,
    ),
    3: (
        _aten._adaptive_avg_pool3d_backward.default, _aten.adaptive_max_pool3d_backward.default,
        _aten.avg_pool3d_backward.default, _aten.max_pool3d_with_indices_backward.default,
        _aten.reflection_pad3d.default, _aten.reflection_pad3d_backward.default,
        _aten.replication_pad3d.default, _aten.replication_pad3d_backward.default,
    ),
}  # fmt: skip
