"""A compiled function that is computed once more for its derivative."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from parallax._compat import shards
from parallax._compat.flow_programs import Function, called, mapped, moved, separate
from parallax._compat.operands import unaliased
from parallax._compat.repeat_operator import NamedProgram

__all__ = ["recompute_of", "signature"]

_count = itertools.count()


class Recompute(NamedTuple):
    """A call of a function that is a graph of its own, so that no two calls are made one."""

    program: NamedProgram

    saved: int = 0

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        return self.program.fn(*operands)

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        if shards.any_distributed(operands):  # torch has no rule for them in a call of a graph
            return self.run(operands)
        fn: Any = self.program.fn
        given = unaliased(operands)
        return invoke_subgraph(fn, self.program.name_for(given), *given)  # type: ignore[no-any-return]  # it is torch's

    def saving(self) -> Recompute:
        return self

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """The function once more, and the vector-Jacobian product, as such a call again."""
        del saved
        given = tuple([k for k, cotangent in enumerate(cotangents) if cotangent is not None])
        program = self.program.pullback(tuple(wanted), given, len(operands))
        return called(Recompute(program), [*operands, *[cotangents[k] for k in given]])

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        inside = [None if dim is None else 0 for dim in dims]
        given = [moved(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
        found = called(_program_of(mapped(self.program.fn, inside, info)), given)
        return found, [0] * len(found)


def recompute_of(body: Any) -> Recompute:
    """The call of a traced body; of one and the same body each time the same program."""
    found: Recompute | None = getattr(body, "_parallax_recompute", None)
    if found is None:
        found = body._parallax_recompute = _program_of(body)
    return found


def _program_of(function: Function) -> Recompute:
    fn: Any = separate(function)
    return Recompute(NamedProgram(fn, f"parallax_recomputed_{next(_count)}"))


def signature(graph: Graph) -> str | None:
    """A text that two graphs share which compute the same, whatever their nodes are called.

    ``None`` for a graph that holds others, or tensors.
    """
    numbers: dict[Node, int] = {}
    rows: list[str] = []
    for node in graph.nodes:
        if node.op == "get_attr":
            return None
        numbers[node] = len(numbers)
        args = map_arg((node.args, node.kwargs), lambda x: f"%{numbers[x]}")
        row = [node.op, "" if node.op == "placeholder" else repr(node.target), repr(args)]
        value = node.meta.get("example_value")
        if node.op == "placeholder":
            row.append(_described(value) if isinstance(value, Tensor) else str(value))
        rows.append(" ".join(row))
    return "\n".join(rows)


def _described(x: Tensor) -> str:
    return f"{type(x).__name__} {x.dtype} {x.device} {tuple(x.shape)} {x.stride()}"
