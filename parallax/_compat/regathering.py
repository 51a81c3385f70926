"""As ``regathered``, in a compiled graph: backward repeats the all-gathers of the forward.

A derivative that is taken within compiled code is one graph, in which backward uses the tensors of
forward: whole weights would be held all the time between. Here the all-gather is repeated before
the first use after the longest pause, if other parts are gathered in that pause. What is repeated
is the all-gather and what only rearranges, of the graph's own inputs; so its result is the same.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from parallax._compat import inductor

__all__ = ["regather", "regathered"]

_aten = torch.ops.aten
_REARRANGING = frozenset({
    getitem, _aten.as_strided.default, _aten.cat.default, _aten.clone.default, _aten.detach.default,
    _aten.expand.default, _aten.permute.default, _aten.reshape.default, _aten.select.int,
    _aten.slice.Tensor, _aten.split.Tensor, _aten.split_with_sizes.default, _aten.squeeze.dim,
    _aten.t.default, _aten.transpose.int, _aten.unbind.int, _aten.unsqueeze.default,
    _aten.view.default, _aten._unsafe_view.default,
})  # fmt: skip
_WAIT = "_c10d_functional::wait_tensor"
_GATHERS = (
    "_c10d_functional::all_gather_into_tensor",
    "_c10d_functional::all_gather_into_tensor_coalesced",
)


def regathered(options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's options with the pass over each graph, after those that a user asks for.

    The graph has to stay in the order in which it was traced: inductor would put nodes next to
    those that use them, and so leave all that is gathered at the beginning.
    """
    ordered = {"reorder_for_locality": False, **options}
    return inductor.with_pass(ordered, ("joint_custom_pre_pass",), regather)


def regather(graph: Graph) -> None:
    """Repeats the all-gathers of a graph whose results are used again much later."""
    nodes = list(graph.nodes)
    number = {node: k for k, node in enumerate(nodes)}
    calls = [node for node in nodes if _name(node) in _GATHERS]
    for call in calls:
        source = _rearranged_inputs(call.all_input_nodes)
        if source is None:
            continue
        whole = _rearranged_from(call)
        users = {user for node in whole for user in node.users if user not in whole}
        uses = sorted(users, key=number.__getitem__)
        others = [number[one] for one in calls if one is not call]
        pauses = [
            (number[second] - number[first], second)
            for first, second in pairwise(uses)
            if any(number[first] < other < number[second] for other in others)
        ]
        if pauses:
            _, again = max(pauses, key=lambda pause: pause[0])
            later = [use for use in uses if number[use] >= number[again]]
            _repeat(graph, [*source, *whole], later, again)


def _name(node: Any) -> str:
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return schema.name if schema is not None else ""


def _rearranged_inputs(nodes: Iterable[Node]) -> list[Node] | None:
    """The nodes that rearrange inputs of the graph to these, in order; ``None`` for others."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> bool:
        if node.op == "placeholder" or node in found:
            return True
        if node.target not in _REARRANGING or not all(map(visit, node.all_input_nodes)):
            return False
        found[node] = None
        return True

    return list(found) if all(map(visit, nodes)) else None


def _rearranged_from(call: Node) -> dict[Node, None]:
    """An all-gather and the nodes that only wait for it and rearrange it, in the graph's order."""
    found: dict[Node, None] = {call: None}
    node = call
    while (node := node.next).op != "output":
        inputs = node.all_input_nodes
        rearranging = node.target in _REARRANGING or _name(node) == _WAIT
        if rearranging and inputs and all([one in found for one in inputs]):
            found[node] = None
    return found


def _repeat(graph: Graph, nodes: Iterable[Node], users: Iterable[Node], before: Node) -> None:
    """Copies nodes to before a node, and has users take the copies."""
    copies: dict[Node, Node] = {}
    with graph.inserting_before(before):
        for node in nodes:
            copies[node] = graph.node_copy(node, lambda one: copies.get(one, one))
    for user in users:
        for node, copy in copies.items():
            user.replace_input_with(node, copy)
    for copy in reversed(copies.values()):
        # Each result of a collective is waited for, used or not: else torch keeps it for ever.
        if not copy.users and _name(copy) != _WAIT:
            graph.erase_node(copy)
