"""Losses whose gradient torch scales where their arguments are sharded.

With ``reduction="mean"`` the backward of these kernels divides by the size of what it is given. Of
distributed tensors that is the part of one process, so the gradient is multiplied by the number of
parts (seen in torch 2.13 and 2.14). The losses that are not named here are right: their means are
operators of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from parallax._compat import functorch, shards

__all__ = ["refuse", "refuse_traced"]

_NODES = {
    "BinaryCrossEntropyBackward0": "binary_cross_entropy",
    "HuberLossBackward0": "huber_loss",
    "MseLossBackward0": "mse_loss",
    "SmoothL1LossBackward0": "smooth_l1_loss",
    "SoftMarginLossBackward0": "soft_margin_loss",
}
_MEAN = 1  # as the kernels number reductions


def refuse(nodes: Iterable[Any]) -> None:
    """Raises if there is such a loss in a graph.

    Args:
        nodes: those of the graph.

    Raises:
        RuntimeError: naming the loss and the remedy.
    """
    for node in nodes:
        name = _NODES.get(node.name())
        if name is not None and node._saved_reduction == _MEAN:
            _require_whole(name, (node._saved_self, node._saved_target))


def refuse_traced() -> None:
    """Stops the trace if such a loss was recorded."""
    from torch._dynamo.comptime import comptime

    comptime(_find_traced)


def _find_traced(context: Any) -> None:
    names = set(_NODES.values())
    for node in context.graph().nodes:
        name = getattr(node.target, "__name__", None)
        if name in names and _is_mean(node):
            given = [arg.meta.get("example_value") for arg in node.all_input_nodes]
            _require_whole(name, given)


def _is_mean(node: Any) -> bool:
    """Whether a call of a loss takes the mean, as all do that are told nothing else."""
    said = [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, str)]
    return said in ([], ["mean"])


def _require_whole(name: str, tensors: Iterable[Any]) -> None:
    if any([_parts(tensor) > 1 for tensor in tensors]):
        raise RuntimeError(
            f"torch multiplies the gradient of F.{name} by the number of parts of its arguments, "
            f"which are sharded here. Take the mean yourself: "
            f"F.{name}(input, target, reduction='none').mean()"
        )


def _parts(tensor: Any) -> int:
    """Into how many parts a tensor is cut, inside of all wrappers."""
    found: Any = None if tensor is None else functorch.innermost(tensor)
    count = 1
    if shards.is_distributed(found):
        for size, placement in zip(found.device_mesh.shape, found.placements, strict=True):
            count *= 1 if placement.is_replicate() or placement.is_partial() else size
    return count
