"""Computes a number that whole tensors read once, before inductor gets the graph.

Inductor writes what leads to a tensor of no dimension into the loop of everything that reads it.
An optimizer's bias correction or a learning-rate schedule, ``1 - 0.999**step``, is then computed
again for every few entries of every leaf (torch 2.13 and 2.14), which can take longer than all the
rest of the step. ``as_strided`` needs memory to look at, so its input is computed once and kept.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from parallax._compat import inductor

__all__ = ["with_kept_numbers"]

_aten = torch.ops.aten
# What costs about as little as the load of a number, by the name of the operator.
_CHEAP = frozenset({
    "abs", "add", "alias", "clamp_max", "clamp_min", "clone", "convert_element_type", "expand",
    "full", "maximum", "minimum", "mul", "neg", "reshape", "scalar_tensor", "squeeze", "sub",
    "_to_copy", "unsqueeze", "view", "where",
})  # fmt: skip


def with_kept_numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's options with the pass over each graph, after those that a user asks for."""
    return inductor.with_pass(options, ("post_grad_custom_post_pass",), keep_numbers)


def keep_numbers(graph: Graph) -> None:
    """Keeps the results of costly operators on numbers where tensors of entries read them."""
    costly: set[Node] = set()
    for node in list(graph.nodes):
        if not (node.op == "call_function" and _is_number(node) and _is_elementwise(node)):
            continue
        if _name(node) not in _CHEAP or not costly.isdisjoint(node.all_input_nodes):
            costly.add(node)
            _keep_for_entries(graph, node)


def _keep_for_entries(graph: Graph, node: Node) -> None:
    readers = [user for user in node.users if _has_entries(user)]
    if not readers:
        return
    with graph.inserting_after(node):
        kept = graph.call_function(_aten.as_strided.default, (node, [], [], 0))
    kept.meta["val"] = node.meta["val"]
    for reader in readers:
        reader.replace_input_with(node, kept)


def _is_number(node: Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.is_complex():  # inductor writes no complex loops
        return False
    return value.dim() == 0 and value.device.type == "cpu"


def _has_entries(node: Node) -> bool:
    value = node.meta.get("val")
    on_cpu = isinstance(value, Tensor) and value.dim() > 0 and value.device.type == "cpu"
    return on_cpu and _is_elementwise(node)


def _is_elementwise(node: Node) -> bool:
    """Whether inductor may write the operator into the loop of another."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.pointwise in target.tags or _name(node) in _CHEAP
    )


def _name(node: Node) -> str:
    target: Any = node.target
    return str(target._schema.name).rpartition("::")[2]
