"""Rewrites what inductor computes wrongly, before inductor gets the graph.

Inductor replaces parts of a graph by patterns. A pattern says nothing of keyword arguments that it
does not name, and yet fits a node that has them (torch 2.13 and 2.14):

- ``add(p, mm(a, b), alpha=c)`` becomes ``addmm(p, a, b)``, without ``c``. Every optimizer with a
  learning rate or weight decay makes this of a linear layer. ``sub`` with ``alpha`` is lost in the
  same way where a softmax is found. Here both become a product and a plain sum.
- ``cumsum(full(...), dtype=...)`` becomes an arithmetic sequence of another dtype. Here the cast
  comes first.

And ``_efficientzerotensor``, which derivatives leave in a graph, is no tensor that generated code
can read or write. Here it is ``full`` of zeros.

In C++, what inductor writes calls some operators by a number, which is another's within a loop or a
branch: the process crashes. Such a graph is refused, so that it is written in Python.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from parallax._compat import inductor

__all__ = ["mended"]

_aten = torch.ops.aten
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_STAGES = ("joint_custom_pre_pass", "post_grad_custom_pre_pass")


def mended(options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's options with the pass over each graph, after those that a user asks for."""
    return inductor.with_pass(options, _STAGES, mend)


def mend(graph: Graph) -> None:
    """Rewrites every node that inductor would get wrong.

    Raises:
        NotInCppError: if the graph cannot be called from C++, as it is to be.
    """
    from torch._inductor import config

    if config.cpp_wrapper and graph.owning_module is not None:
        inner = [m for m in graph.owning_module.modules() if isinstance(m, GraphModule)][1:]
        if any([_is_numbered(node.target) for one in inner for node in one.graph.nodes]):
            raise inductor.NotInCppError
    for node in list(graph.nodes):
        if node.target in _SUMS and "alpha" in node.kwargs:
            _multiply_first(graph, node)
        elif node.target is _aten.cumsum.default and node.kwargs.get("dtype") is not None:
            _cast_first(graph, node)
        elif node.target is _aten._efficientzerotensor.default:
            _fill_with_zeros(graph, node)


def _is_numbered(op: Any) -> bool:
    """Whether C++ calls an operator by a number, as it has neither code nor a function for it."""
    if not isinstance(op, torch._ops.OpOverload):
        return False
    from torch._inductor.lowering import fallbacks, lowerings
    from torchgen.aoti.fallback_ops import (  # type: ignore[import-untyped]  # it is torch's
        inductor_fallback_ops,
    )

    return (op in fallbacks or op not in lowerings) and str(op) not in inductor_fallback_ops


def _multiply_first(graph: Graph, node: Node) -> None:
    first, second = node.args
    dtype = node.meta["val"].dtype
    alpha: Any = bool(node.kwargs["alpha"]) if dtype == torch.bool else node.kwargs["alpha"]
    if alpha == 1:
        node.kwargs = {}
        return
    with graph.inserting_before(node):
        # Sums are computed in the dtype of the result.
        scaled = _call(graph, _aten.mul.Tensor, _in_dtype(graph, second, dtype), alpha)
    node.args, node.kwargs = (first, scaled), {}


def _cast_first(graph: Graph, node: Node) -> None:
    source, *rest = node.args
    with graph.inserting_before(node):
        cast = _in_dtype(graph, source, node.meta["val"].dtype)
    node.args = (cast, *rest)


def _fill_with_zeros(graph: Graph, node: Node) -> None:
    kept: dict[str, Any] = {key: node.kwargs.get(key) for key in ("dtype", "device")}
    with graph.inserting_before(node):
        zeros = graph.call_function(_aten.full.default, (node.args[0], 0), kept)
    with node.meta["val"].fake_mode:
        zeros.meta["val"] = torch.empty_like(node.meta["val"])
    node.replace_all_uses_with(zeros)
    graph.erase_node(node)


def _in_dtype(graph: Graph, value: Any, dtype: torch.dtype) -> Any:
    if not isinstance(value, Node):
        return value
    found = value.meta["val"]
    if not isinstance(found, Tensor) or found.dtype == dtype:
        return value
    return _call(graph, torch.ops.prims.convert_element_type.default, value, dtype)


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """A node with the description of its result, from those of its arguments."""
    node = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    node.meta["val"] = target(*values)
    return node
