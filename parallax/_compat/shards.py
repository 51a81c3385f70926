"""Distributed tensors (``DTensor``): what is one, and values placed as one.

To import their package takes as long as torch itself, so nothing here does: whoever holds a
distributed tensor has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch

__all__ = [
    "all_true",
    "any_distributed",
    "are_known",
    "around_in_trace",
    "beside",
    "detached",
    "is_distributed",
    "is_known_distributed",
    "is_mixing",
    "local_of",
    "locals_in_trace",
    "may_be_distributed",
    "note_missing_rule",
    "part_beside",
    "placed_as",
    "placement_of",
    "shown",
    "spread_of",
    "summed",
    "whole",
    "with_part",
    "with_spec",
]  # fmt: skip


@dynamo.constant_in_traces
def _kind() -> type:
    """The class of distributed tensors; if it is not imported yet, one that no tensor has."""
    package = sys.modules.get("torch.distributed.tensor")
    return type(None) if package is None else package.DTensor


def are_known() -> bool:
    """Whether there can be a distributed tensor in this process; costs a trace nothing."""
    return _kind() is not type(None)


def is_distributed(value: Any) -> bool:
    """Whether a value is a distributed tensor."""
    return value is not None and isinstance(value, _kind())


def is_known_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is distributed, in whatever wrappers; within a traced transform not told."""
    return is_distributed(tensor if dynamo.is_compiling() else functorch.innermost(tensor))


def may_be_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is distributed, or in a trace may turn out to be."""
    if not are_known():
        return False
    unknown = dynamo.is_compiling() and functorch.traced_level() > 0 and _are_several()
    return unknown or is_known_distributed(tensor)


@dynamo.constant_in_traces
def _are_several() -> bool:
    """Whether this process is one of a group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def any_distributed(values: Iterable[Any]) -> bool:
    """Whether there is a distributed tensor among these tensors; holes are ``None``."""
    kind = _kind()
    return kind is not type(None) and any([isinstance(value, kind) for value in values])


def local_of(tensor: Any) -> Tensor:
    """The part of a distributed tensor that this process holds, without a graph."""
    return tensor._local_tensor  # type: ignore[no-any-return]  # a Tensor


def spread_of(value: Any) -> Any:
    """How a tensor is spread, to compare with another; ``None`` of a plain one."""
    return (value.device_mesh, value.placements, value.shape) if is_distributed(value) else None


def shown(value: Any) -> str:
    """How a value is spread, in a few words: "Shard(0) on dp, Shard(1) on tp", say."""
    if not is_distributed(value):
        return "plain"
    mesh = value.device_mesh
    names = mesh.mesh_dim_names or tuple([f"dim {k}" for k in range(mesh.ndim)])
    cuts = [
        f"{'Partial' if at.is_partial() else f'Shard({at.dim})'} on {name}"
        for name, at in zip(names, value.placements, strict=True)
        if not at.is_replicate()
    ]
    return ", ".join(cuts) or "replicated"


def is_mixing(error: BaseException) -> bool:
    """Whether an error is torch's where plain and distributed tensors meet in one operation."""
    return isinstance(error, RuntimeError) and "got mixed torch.Tensor and DTensor" in str(error)


def note_missing_rule(error: BaseException) -> None:
    """Adds what to write to torch's error of an operator of which it has no rule."""
    missing = isinstance(error, NotImplementedError) and "have a sharding strategy" in str(error)
    if missing and _WITHOUT_RULE not in getattr(error, "__notes__", ()):
        error.add_note(_WITHOUT_RULE)


_WITHOUT_RULE = (
    "Torch does not know how the result of this operator is cut. Compute it of whole tensors, in "
    "every process: x = x.full_tensor()"
)


def whole(value: Any) -> Any:
    """A distributed tensor put together; every process of its mesh calls it. Others as they are."""
    return value.full_tensor() if is_distributed(value) else value


def with_spec(local: Tensor, spec: Any) -> Tensor:
    """What this process holds as a distributed tensor without a graph, by torch's description."""
    kind: Any = _kind()  # of which __init__ does nothing, slowly
    return kind.__new__(kind, local, spec, requires_grad=False)  # type: ignore[no-any-return]  # a DTensor


def detached(tensor: Tensor) -> Tensor:
    """A tensor without its graph; of a distributed one without torch asking how it is cut."""
    if type(tensor) is not Tensor and _is_unwatched(tensor):
        return with_spec(tensor._local_tensor.detach(), tensor._spec)  # type: ignore[attr-defined]  # a DTensor
    return tensor.detach()


def _is_unwatched(tensor: Any) -> bool:
    """Whether a tensor is distributed and no trace or mode is to see what is done with it."""
    return (
        is_distributed(tensor)
        and torch._C._len_torch_dispatch_stack() == 0
        and not dynamo.is_compiling()
    )


def summed(value: Any) -> Any:
    """A tensor in which no sum waits: as a number it is the same in every process.

    Every process of the mesh calls it; what is cut stays cut.
    """
    if not is_distributed(value) or not any([at.is_partial() for at in value.placements]):
        return value
    from torch.distributed.tensor import Replicate

    return value.redistribute(
        placements=[Replicate() if at.is_partial() else at for at in value.placements]
    )


def all_true(parts: Sequence[Tensor]) -> Tensor:
    """Whether all of these booleans hold, a boolean tensor: the same in every process.

    Those that are spread alike are put together first, for torch stacks no others; each kind by one
    collective.

    Args:
        parts: booleans of no dimension, at least one.
    """
    alike: dict[Any, list[Tensor]] = {}
    for part in parts:
        spread = (part.device_mesh, part.placements) if is_distributed(part) else None  # type: ignore[attr-defined]  # a DTensor
        alike.setdefault(spread, []).append(part.to(parts[0].device))
    found = [summed(torch.stack(ones).all()) for ones in alike.values()]
    # On every mesh they are whole by now.
    return found[0] if len(found) == 1 else torch.stack([whole(one) for one in found]).all()


def part_beside(tensor: Any, like: Any) -> Tensor | None:
    """What this process holds of a tensor; ``None`` unless another one is cut in the same way.

    Both may be plain. Sums that wait are no values yet, and there is no such part of them.
    """
    if not (is_distributed(tensor) and is_distributed(like)):
        return None if is_distributed(tensor) or is_distributed(like) else tensor
    one, two = tensor._spec, like._spec
    here: Tensor = tensor._local_tensor
    if one is not two and (
        one.mesh != two.mesh or one.placements != two.placements or one.shape != two.shape
    ):
        return None
    if here.shape != like._local_tensor.shape or any([p.is_partial() for p in one.placements]):
        return None
    return here


def with_part(tensor: Any, part: Tensor, like: Any) -> Tensor:
    """A tensor of which this process holds another part: the tensor itself if it is the same one.

    Args:
        tensor: plain or distributed.
        part: what this process holds of the result; without a graph.
        like: a tensor that is cut in the same way, for the order of the result in memory.
    """
    if not is_distributed(tensor) or part is tensor._local_tensor:
        return part if not is_distributed(tensor) else tensor
    for known in (tensor, like):
        here = known._local_tensor
        if part.stride() == here.stride() and part.dtype is here.dtype:
            return with_spec(part, known._spec)
    return with_spec(part, _contiguous(tensor._spec, part.dtype))


def locals_in_trace(tensors: list[Any]) -> list[Tensor]:
    """While dynamo traces: what this process holds of these, by one node of the graph."""
    _allow_in_graph()
    return list(_locals(*tensors))


def around_in_trace(before: list[Any], parts: list[Tensor], like: list[Any]) -> list[Any]:
    """While dynamo traces: as ``with_part`` of each, by one node of the graph."""
    _allow_in_graph()
    return list(_around(len(parts), *before, *parts, *like))


def _locals(*tensors: Any) -> tuple[Tensor, ...]:
    return tuple([local_of(t) if is_distributed(t) else t for t in tensors])


def _around(count: int, *tensors: Any) -> tuple[Any, ...]:
    columns = (tensors[:count], tensors[count : 2 * count], tensors[2 * count :])
    return tuple([with_part(*row) for row in zip(*columns, strict=True)])


def _contiguous(spec: Any, dtype: Any) -> Any:
    """A description of a tensor of another dtype that is contiguous, cut in the same way."""
    from torch._prims_common import make_contiguous_strides_for
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(spec.shape, make_contiguous_strides_for(spec.shape), dtype)
    return DTensorSpec(spec.mesh, spec.placements, tensor_meta=meta)


def placement_of(tensor: Any) -> str:
    """How a distributed tensor is spread, for error messages."""
    return f"{tensor.placements} over {tensor.device_mesh.size()} process(es)"


def placed_as(value: Tensor, leaf: Any) -> Tensor:
    """A value on the mesh of a leaf and cut as it is; whole if the leaf is a plain tensor.

    Every process of the mesh calls it. It communicates where the value is distributed and the leaf
    is placed otherwise; a plain value is the same in each process, which takes its part of it.

    Args:
        value: plain or distributed.
        leaf: what says where to; a declaration, or a leaf on the meta device that is not
            distributed, says nothing.
    """
    if is_distributed(leaf):
        spread: Any = value
        mesh, placements = leaf.device_mesh, leaf.placements
        if is_distributed(spread) and spread.device_mesh == mesh:
            return spread.redistribute(mesh, placements)  # type: ignore[no-any-return]  # a Tensor
        package = sys.modules["torch.distributed.tensor"]
        whole = spread.full_tensor() if is_distributed(spread) else spread
        return package.distribute_tensor(whole, mesh, placements, src_data_rank=None)  # type: ignore[no-any-return]  # a Tensor
    if is_distributed(value) and isinstance(leaf, Tensor) and not leaf.is_meta:
        return value.full_tensor()  # type: ignore[attr-defined, no-any-return]  # a DTensor
    return value


def beside(value: Tensor, operand: Any) -> Tensor:
    """A value to compute with beside an operand: on its mesh if that is distributed.

    Torch refuses to mix plain and distributed tensors. Nothing is communicated. Inside a transform
    that dynamo traces the class of an operand is not known, so its graph gets one node that looks.

    Args:
        value: the same in each process; without a graph.
        operand: whatever the value is combined with.
    """
    if not isinstance(operand, Tensor) or is_distributed(value):
        return value
    if dynamo.is_compiling():
        if is_distributed(operand):
            return _replicated_in_trace(value, operand)
        if _kind() is type(None) or functorch.traced_level() == 0:
            return value
        _allow_in_graph()
    return _beside(value, operand)


def _beside(value: Tensor, operand: Tensor) -> Tensor:
    inner: Any = functorch.innermost(operand)
    if is_distributed(inner) and not functorch.is_mapped_within(value):
        return _replicated(functorch.innermost(value), inner.device_mesh)
    return value


@dynamo.constant_in_traces
def _allow_in_graph() -> None:
    """Has dynamo take each function as one node; loads dynamo, which runs already."""
    from torch._dynamo import allow_in_graph

    allow_in_graph(_around)
    allow_in_graph(_beside)
    allow_in_graph(_locals)


def _replicated(value: Tensor, mesh: Any) -> Tensor:
    """A plain tensor without a graph as a distributed one; torch's own way fails in transforms."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    meta = TensorMeta(value.shape, value.stride(), value.dtype)
    spec = DTensorSpec(mesh, (Replicate(),) * mesh.ndim, tensor_meta=meta)
    with functorch.outside_transforms():
        return with_spec(value, spec)


def _replicated_in_trace(value: Tensor, operand: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(value, operand.device_mesh, run_check=False)
