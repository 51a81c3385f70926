"""A program and its derivative as two programs: the first keeps what the second needs.

It is what AOTAutograd does to a whole graph, done to the graph of one call of many: the program and
its vector-Jacobian product are traced together and parted where the least has to be kept. Without
it each call would be computed once more in backward.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._higher_order_ops.partitioner import HopJointGraph
from torch._higher_order_ops.utils import materialize_as_graph
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import CheckpointPolicy

__all__ = ["Parted", "part"]

Function = Callable[..., Sequence[Tensor]]


class Parted(NamedTuple):
    """A function of tensors to one tensor, and its derivative.

    Attributes:
        forward: takes the operands to the result, and to more that is there for the derivative.
        backward: takes the operands in the places ``held``, what ``forward`` returned in the places
            ``kept``, and the cotangent of the result to the cotangents that are wanted.
        held: which operands the derivative needs.
        kept: what it needs of what ``forward`` returned.
    """

    forward: Function
    backward: Function
    held: tuple[int, ...]
    kept: tuple[int, ...]


def part(function: Function, operands: Sequence[Tensor], wanted: Sequence[int]) -> Parted | None:
    """The parts of a function whose operands are like these, for the cotangents of some of them.

    ``None`` where a call could not return what is needed, as it is memory of an operand, and for
    functions that call graphs of their own, such as loops, or write into an operand.
    """
    count = len(operands)

    def joint(*inputs: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs[:count])

        def moving(*values: Tensor) -> Tensor:
            for place, value in zip(wanted, values, strict=True):
                given[place] = value
            return function(*given)[0]

        pulled: Any = torch.func.vjp(moving, *[given[k] for k in wanted])
        return pulled[0], *pulled[1](inputs[count])

    result = _outputs(_traced(function, operands))[0]
    inputs = (*operands, result.meta["val"])  # a cotangent is like the result
    # The derivative is taken first: a graph without writes has none.
    graph = _traced(joint, inputs)
    if not _has_operators_only(graph.graph):
        return None
    graph = _traced(torch.func.functionalize(graph, remove="mutations"), inputs)
    if any(node.op == "call_function" and _writes(node.target) for node in graph.graph.nodes):
        return None
    _compute_views_again(graph.graph)
    whole = HopJointGraph(graph, count, 1, functionalized=True)
    parts = whole.partition(min_cut_rematerialization_partition, False)
    return _apart(parts.fw_gm, parts.bw_gm)


def _traced(function: Any, inputs: Sequence[Tensor]) -> GraphModule:
    return materialize_as_graph(function, tuple(inputs), force_enable_grad=True)


def _outputs(graph: GraphModule) -> list[Node]:
    found: Any = graph.graph.output_node().args[0]
    return list(found)


def _has_operators_only(graph: Graph) -> bool:
    return all(
        isinstance(node.target, OpOverload) or node.target is operator.getitem
        if node.op == "call_function"
        else node.op in ("placeholder", "output")
        for node in graph.nodes
    )


def _writes(target: Any) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable


def _compute_views_again(graph: Graph) -> None:
    """Has views made in each part: what a call returns may not be memory of another tensor."""
    for node in graph.nodes:
        node.meta["ac_graph_id"] = 0  # as torch wants it of a graph with such marks
        if node.op != "call_function":
            continue
        given = node.all_input_nodes
        if node.target is operator.getitem:  # a part of what an operator returned
            given = given[0].all_input_nodes
        if _memory(node) & {m for one in given for m in _memory(one)}:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE


def _memory(node: Node) -> set[Any]:
    """The memory of a tensor, or of several that an operator returns."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return {StorageWeakRef(x.untyped_storage()) for x in values if isinstance(x, Tensor)}


def _apart(forward: GraphModule, backward: GraphModule) -> Parted | None:
    result, *saved = _outputs(forward)
    places = {node: k for k, node in enumerate(forward.graph.find_nodes(op="placeholder"))}
    held = [node for node in saved if node in places]
    returned = [result, *[node for node in saved if node not in places and node is not result]]
    memory = [m for node in (*places, *returned) for m in _memory(node)]
    if len(memory) != len({*memory}) or len(memory) != len(places) + len(returned):
        return None
    kept = [node for node in returned if node in saved]
    order = [[*held, *kept].index(node) for node in saved]
    forward.graph.output_node().args = (tuple(returned),)
    forward.recompile()

    def back(*inputs: Tensor) -> Sequence[Tensor]:
        return backward(*[inputs[k] for k in order], inputs[-1])  # type: ignore[no-any-return]  # a module's results

    return Parted(
        forward, back, tuple([places[x] for x in held]), tuple([returned.index(x) for x in kept])
    )
