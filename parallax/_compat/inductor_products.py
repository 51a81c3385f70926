"""Products of matrices in the forms that a CPU computes fastest, before inductor gets the graph.

Inductor calls a library for every product, as the graph has it. Two forms take longer than others
of the same numbers (MKL 2024.2 with AVX-512, float32, one thread, torch 2.13 and 2.14):

- A batch whose left matrix is the same in all is one product with the right ones side by side: 64
  of 64 x 64 take 690 us as a batch and 270 as one. The members of an ensemble share their data so.
- Where a side is of size one a call of the library takes 2 to 10 us, and cannot be part of the
  loops before and after it.

Products of small matrices are not left to a library where the graph is called from C++
(``inductor_kernels``).
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from parallax._compat import inductor, inductor_kernels

__all__ = ["with_fast_products"]

_aten = torch.ops.aten
_PRODUCTS = (_aten.bmm.default, _aten.mm.default)
_VIEWS = (_aten.permute.default, _aten.reshape.default, _aten.view.default, _aten.expand.default)
_MOST = 2**15  # entries that a loop multiplies and sums as fast as the library


def with_fast_products(options: dict[str, Any]) -> dict[str, Any]:
    """Inductor's options with the pass over each graph, after those that a user asks for."""
    return inductor.with_pass(options, ("post_grad_custom_post_pass",), rewrite)


def rewrite(graph: Graph) -> None:
    """Rewrites every product that has a faster form."""
    from torch._inductor import config

    moved = False
    in_cpp = config.cpp_wrapper
    for node in list(graph.nodes):
        if node.target not in _PRODUCTS:
            continue
        left, right = [arg.meta["val"] for arg in node.args]
        if not (_is_known(left) and _is_known(right)):
            continue
        if _is_thin(left, right):
            _write_as_loop(graph, node)
        elif in_cpp and inductor_kernels.is_small(left, right):
            node.target = inductor_kernels.product()
        elif _is_shared(left, right):
            _write_as_one(graph, node)
            moved = True
    if moved:
        _keep_orders(graph)


def _is_known(value: Tensor) -> bool:
    """Whether it is a matrix of numbers on the CPU, of sizes that are no symbols."""
    return (
        value.device.type == "cpu"
        and value.dtype in (torch.float32, torch.float64)
        and all([isinstance(n, int) for n in (*value.shape, *value.stride())])
        and value.numel() > 0
    )


# -- a side of size one -------------------------------------------------------------------------


def _is_thin(left: Tensor, right: Tensor) -> bool:
    rows, inner, columns = left.shape[-2], left.shape[-1], right.shape[-1]
    if inner == 1:
        return True
    return 1 in (rows, columns) and max(left.numel(), right.numel()) <= _MOST


def _write_as_loop(graph: Graph, node: Node) -> None:
    one, two = node.args
    assert isinstance(one, Node) and isinstance(two, Node)
    inner, columns = one.meta["val"].shape[-1], two.meta["val"].shape[-1]
    with graph.inserting_before(node):
        one, two = _computed_once(graph, one), _computed_once(graph, two)
        if inner == 1:
            product = _call(graph, _aten.mul.Tensor, one, two)
        elif columns == 1:
            product = _call(graph, _aten.mul.Tensor, one, _turned(graph, two))
            product = _call(graph, _aten.sum.dim_IntList, product, [-1], True)
        else:
            product = _call(graph, _aten.mul.Tensor, _turned(graph, one), two)
            product = _call(graph, _aten.sum.dim_IntList, product, [-2], True)
    _replace(graph, node, product)


def _turned(graph: Graph, node: Node) -> Node:
    count = node.meta["val"].dim()
    return _call(graph, _aten.permute.default, node, [*range(count - 2), count - 1, count - 2])


def _computed_once(graph: Graph, node: Node) -> Node:
    """The same values, not computed anew for each entry of the other matrix.

    ``as_strided`` needs memory to look at.
    """
    if node.target in _VIEWS:
        source: Any = node.args[0]
        kept = _computed_once(graph, source)
        return node if kept is source else _call(graph, node.target, kept, *node.args[1:])
    if not _is_pointwise(node):
        return node
    value = node.meta["val"]
    shape, stride = list(value.shape), list(value.stride())
    return _call(graph, _aten.as_strided.default, node, shape, stride, 0)


# -- a batch that shares its left matrix --------------------------------------------------------


def _is_shared(left: Tensor, right: Tensor) -> bool:
    """Whether a batch is one product, of which the right matrix is there already."""
    if left.dim() != 3 or len(left) == 1 or left.stride(0) != 0:
        return False
    rows, columns = left.shape[1], right.shape[2]
    # The result may be copied; the library is as fast for batches of large matrices.
    pays = left.shape[2] >= 16 and (columns <= 128 or rows <= 64)
    return pays and right.stride(0) == columns * right.stride(2)


def _write_as_one(graph: Graph, node: Node) -> None:
    one, two = node.args
    assert isinstance(one, Node) and isinstance(two, Node)
    batch, rows, inner = one.meta["val"].shape
    columns = two.meta["val"].shape[2]
    with graph.inserting_before(node):
        one = _call(graph, _aten.select.int, one, 0, 0)
        two = _call(graph, _aten.permute.default, two, [1, 0, 2])
        two = _call(graph, _aten.reshape.default, two, [inner, batch * columns])
        product = _call(graph, _aten.mm.default, one, two)
        product = _call(graph, _aten.reshape.default, product, [rows, batch, columns])
        product = _call(graph, _aten.permute.default, product, [1, 0, 2])
        product = _contiguous(graph, product)
    _replace(graph, node, product)


def _keep_orders(graph: Graph) -> None:
    """Has what is computed for a batch of products in the order in memory that the graph says.

    Inductor would take that of the product before, whose rows are far apart: twice as slow.
    """
    ordered = torch.ops.prims.inductor_force_stride_order.default
    for node in graph.find_nodes(op="call_function", target=_aten.bmm.default):
        for arg in dict.fromkeys(node.all_input_nodes):
            value = arg.meta["val"]
            if _is_pointwise(arg) and _is_known(value) and value.is_contiguous():
                with graph.inserting_before(node):
                    node.replace_input_with(arg, _call(graph, ordered, arg, value.stride()))


# -- nodes --------------------------------------------------------------------------------------


def _is_pointwise(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _contiguous(graph: Graph, node: Node) -> Node:
    return _call(graph, _aten.clone.default, node, memory_format=torch.contiguous_format)


def _replace(graph: Graph, node: Node, other: Node) -> None:
    if other.meta["val"].stride() != node.meta["val"].stride():  # as what reads it was described
        with graph.inserting_before(node):
            other = _contiguous(graph, other)
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def _call(graph: Graph, target: Any, *args: Any, **options: Any) -> Node:
    """A node with the description of its result, from those of its arguments."""
    node = graph.call_function(target, args, options)
    values = [arg.meta["val"] if isinstance(arg, Node) else arg for arg in args]
    node.meta["val"] = target(*values, **options)
    return node
