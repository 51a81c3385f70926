"""What torch's distributed tensors lack, told to torch: rules for kernels, and right gradients.

- The attention kernel of the CPU has no rule how it is cut. Here it may be, by batch and by head.
- The backward of some losses with ``reduction="mean"`` divides by the size of what the kernel is
  given. Of distributed tensors that is the part of one process, so the gradient is multiplied by
  the number of parts (seen in torch 2.13 and 2.14). Here it is computed by operators that are
  right. The losses that are not named are right anyway: their means are operators of their own.
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

from parallax._compat import dynamo, shards

__all__ = ["complete", "refuse_numbers_on"]

_aten = torch.ops.aten
_LOSSES = (
    _aten.binary_cross_entropy_backward.default,
    _aten.huber_loss_backward.default,
    _aten.mse_loss_backward.default,
    _aten.smooth_l1_loss_backward.default,
    _aten.soft_margin_loss_backward.default,
)
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
    for loss in _LOSSES:
        handlers.setdefault(loss, _decomposed)
    for squeeze in _SQUEEZES:
        handlers.setdefault(squeeze, _squeezed)
    handlers.setdefault(_aten._local_scalar_dense.default, _number)
    propagator = kind._op_dispatcher.sharding_propagator
    for op, rule in _ATTENTION.items():
        register_sharding(op)(rule)
        # What is found for some arguments is kept: it depends on the mask as well.
        propagator.op_to_schema_info[op].static_kwargkey = ["attn_mask"]


def _decomposed(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operator written by others, of which torch knows the rules."""
    from torch._decomp import decomposition_table

    return decomposition_table[op](*args, **kwargs)


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


def _is_for_all(mask: Any, dim: int) -> bool:
    return dim < 0 or mask.shape[dim] == 1


_ATTENTION: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
