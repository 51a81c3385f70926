"""The levels of the transforms in a body that dynamo traced, and that runs at another depth."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph

from parallax._compat import functorch

__all__ = ["relevel"]

_LEVELLED = {
    "_wrap_for_grad": 1,
    "_unwrap_for_grad": 1,
    "_add_batch_dim": 2,
    "_remove_batch_dim": 1,
}
"""The functions of a transform that take its level, and as which argument."""


def relevel(graph: Graph) -> None:
    """Has the transforms in a body use the levels that they get when it runs.

    Dynamo writes them down as numbers, from the present one on; in a derivative the body runs at
    another depth.
    """
    base = functorch.current_level()
    running: list[Any] = []
    for node in graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name.endswith("_increment_nesting"):
            running.append(node)
        elif name.endswith("_decrement_nesting"):
            running.pop()
        elif name in _LEVELLED:
            place = _LEVELLED[name]
            depth = node.args[place] - base
            if depth > 0:
                node.update_arg(place, running[depth - 1])
