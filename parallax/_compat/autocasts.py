"""Autocast around a body that dynamo traced, which runs again where another may be on.

A body is called once more for a derivative, after the block of ``torch.autocast`` that it was
called in, and torch traces bodies that look the same only once.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

__all__ = ["autocast_for", "keep_autocast"]


def autocast_for(operands: Sequence[Any]) -> tuple[Any, ...]:
    """For each kind of device that autocast is on for and an operand is on: the kind and dtype."""
    kinds = dict.fromkeys([x.device.type for x in operands if isinstance(x, Tensor)])
    return tuple([(kind, torch.get_autocast_dtype(kind)) for kind in kinds if _is_on(kind)])


def _is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def keep_autocast(graph: Graph, around: Sequence[Graph]) -> None:
    """Has a body run with the autocast that is on now; ``around`` are the graphs that it is in."""
    places = graph.find_nodes(op="placeholder")
    kinds = {
        value.device.type
        for value in [place.meta.get("example_value") for place in places]
        if isinstance(value, Tensor) and torch.amp.is_autocast_available(value.device.type)
    }
    known = any(each.find_nodes(op="call_function", target=_enter) for each in around)
    for kind in sorted(kinds):
        on = torch.is_autocast_enabled(kind)
        if not on and not known:
            continue
        state = kind, torch.get_autocast_dtype(kind), on, torch.is_autocast_cache_enabled()
        first = next(node for node in graph.nodes if node.op != "placeholder")
        with graph.inserting_before(first):
            mode = graph.call_function(_enter, state)
        with graph.inserting_before(graph.output_node()):
            graph.call_function(_exit, (mode,))


_amp: Any = torch.amp
_enter, _exit = _amp._enter_autocast, _amp._exit_autocast
