"""Sums over the processes of a group, with derivatives of every order.

Each process has a loss of its own, and the derivative is that of the sum of all losses: backward
sums the gradients over the processes, too. Every process must take the same derivatives.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo

__all__ = ["group_of", "name_of", "summed_over"]


def name_of(group: Any) -> str | None:
    """The name of a process group, or of a mesh of one dimension; ``None`` if it is neither."""
    if isinstance(group, torch.distributed.ProcessGroup):
        return str(group.group_name)
    if isinstance(group, torch.distributed.device_mesh.DeviceMesh) and group.ndim == 1:
        return str(group.get_group().group_name)
    return None


@dynamo.constant_in_traces
def group_of(name: str | None) -> str | None:
    """The name of a group of several processes, by default of all; ``None`` if there is but one."""
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized()):
        return None
    c10d: Any = dist.distributed_c10d
    group: Any = c10d._get_default_group() if name is None else c10d._resolve_process_group(name)
    return str(group.group_name) if dist.get_world_size(group) > 1 else None


def summed_over(group: str, tensor: Tensor) -> Tensor:
    """The sum of this tensor of every process of a group.

    Args:
        group: the name of the group.
        tensor: of the same shape and dtype in each.
    """
    if dynamo.is_compiling():
        _allow_in_graph()
    return _summed(group, tensor)


def _summed(group: str, tensor: Tensor) -> Tensor:
    out: Tensor = _Sum.apply(group, tensor)  # type: ignore[no-untyped-call]  # it is torch's
    return out


@dynamo.constant_in_traces
def _allow_in_graph() -> None:
    """Has dynamo take a sum as one node: within a transform it does not follow the class below."""
    from torch._dynamo import allow_in_graph

    allow_in_graph(_summed)


class _Sum(torch.autograd.Function):
    """The sum over processes, which is linear and its own transpose."""

    @staticmethod
    def forward(group: str, tensor: Tensor) -> Tensor:
        import torch.distributed._functional_collectives as collectives

        named: Any = group
        found = collectives.all_reduce(tensor.contiguous(), "sum", named)
        return collectives.wait_tensor(found)  # type: ignore[no-any-return]  # a Tensor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, summed_over(ctx.group, grads[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return summed_over(ctx.group, tangents[1])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return summed_over(*args), in_dims[1]
