"""What a function that dynamo traces takes beside its arguments, where that is differentiated."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from parallax._compat import in_trace
from parallax._compat.functorch import is_wrapped, unwrapped

__all__ = ["refuse", "reply_begin", "reply_captured", "reply_moved"]


def reply_begin(context: Any) -> None:
    """Replies where the graph ends now."""
    in_trace.reply(context, len(_nodes(context)))


def reply_captured(context: Any) -> None:
    """Replies whether the local ``outs`` is computed of what is differentiated and no argument.

    Arguments are the local ``tensors``; what the graph has from before ``begun``, and its inputs,
    are what can be captured.
    """
    nodes = _nodes(context)
    begun: int = in_trace.constant(context, "begun")
    own = {one.node for one in in_trace.tensors_of(context, "tensors") if one is not None}
    outs = {one.node for one in in_trace.tensors_of(context, "outs") if one is not None}
    marked: set[Any] = set()
    for place, node in enumerate(nodes):
        if node not in own and _is_differentiated(node.meta.get("example_value")):
            outside = place < begun or node.op in ("placeholder", "get_attr")
            if outside or not marked.isdisjoint(node.all_input_nodes):
                marked.add(node)
    in_trace.reply(context, not marked.isdisjoint(outs))


def reply_moved(context: Any) -> None:
    """Replies whether one of the local ``tensors`` has a derivative in forward mode."""
    found = [one.value for one in in_trace.tensors_of(context, "tensors") if one is not None]
    in_trace.reply(context, any([unpack_dual(value).tangent is not None for value in found]))


def refuse(context: Any) -> None:
    """Raises an error, the local ``kind``, that says the local ``text``; dynamo hands it on."""
    kind = in_trace.constant(context, "kind")
    raise in_trace.as_trace_error(kind(in_trace.constant(context, "text")))


def _nodes(context: Any) -> list[Any]:
    tx = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    return list(tx.output.current_tracer.graph.nodes)


def _is_differentiated(value: Any) -> bool:
    """Whether a stand-in has a derivative in reverse mode, in whatever wrappers it is."""
    if isinstance(value, (tuple, list)):
        return any(map(_is_differentiated, value))
    if not isinstance(value, Tensor):
        return False
    tensor: Tensor = value
    while not tensor.requires_grad and is_wrapped(tensor):
        tensor = unwrapped(tensor)
    return tensor.requires_grad
