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
from parallax._compat.keeping import Kept, KeptInGraph, Policy, in_graph
from parallax._compat.operands import unaliased
from parallax._compat.repeat_operator import NamedProgram

__all__ = ["recompute_of", "signature"]

_count = itertools.count()


class _Keeping:
    """What one call keeps for its derivative; known when the graph of the call is traced.

    Attributes:
        record: what it is.
        name: of that graph.
    """

    __slots__ = ("name", "record")

    def __init__(self) -> None:
        self.record: KeptInGraph | None = None
        self.name = ""


class Recompute(NamedTuple):
    """A call of a function that is a graph of its own, so that no two calls are made one.

    Attributes:
        program: the function.
        policy: which results of operators are kept for a derivative, if any.
        keeping: what is kept, in a call that has a derivative.
    """

    program: NamedProgram
    policy: Policy | None = None
    keeping: _Keeping | None = None

    @property
    def saved(self) -> int:
        return self.keeping.record.size if self.keeping and self.keeping.record else 0

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        return self.program.fn(*operands)

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        if shards.any_distributed(operands):  # torch has no rule for them in a call of a graph
            return self.run(operands)
        given = unaliased(operands)
        name = self.program.name_for(given)
        keeping, policy = self.keeping, self.policy
        if keeping is None or policy is None:
            return _graph(self.program.fn, name, given)
        records = self.program.records

        def first(*values: Any) -> Sequence[Tensor]:
            kept = Kept(policy)
            with kept.first(values):
                results = self.program.fn(*values)
            records[name], tensors = in_graph(kept, values)
            return (*results, *tensors)

        found = _graph(first, f"{name}_keeping", given)  # traced, unless there is one already
        keeping.record, keeping.name = records[name], name
        return found

    def saving(self) -> Recompute:
        if self.policy is None or self.keeping is not None:
            return self
        return self._replace(keeping=_Keeping())

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """The function once more, and the vector-Jacobian product, as such a call again."""
        given = tuple([k for k, cotangent in enumerate(cotangents) if cotangent is not None])
        pullback = self.program.pullback(tuple(wanted), given, len(operands))
        again = [*operands, *[cotangents[k] for k in given]]
        if not saved:
            return called(Recompute(pullback), again)
        assert self.keeping is not None
        return called(_Again(pullback, self.keeping), [*again, *saved])

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int | None]]:
        program, given = _mapped(self.program, operands, dims, info)
        recompute = self._replace(program=program)
        found = called(recompute, given)
        # What is kept is kept of all members at once, and nobody looks into it.
        return found, [0] * (len(found) - recompute.saved) + [None] * recompute.saved


class _Again(NamedTuple):
    """A call of a function that takes what was kept, its last operands.

    They stand for what the function computes: a derivative goes through the operators that computed
    them, so by them there is none.
    """

    program: NamedProgram
    keeping: _Keeping
    saved: int = 0

    def _apart(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], KeptInGraph]:
        record = self.keeping.record
        assert record is not None
        count = len(operands) - record.size
        return list(operands[:count]), list(operands[count:]), record

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        return self.program.fn(*self._apart(operands)[0])

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        if shards.any_distributed(operands):
            return self.run(operands)
        given = unaliased(operands)

        def again(*values: Any) -> Sequence[Tensor]:
            own, tensors, record = self._apart(values)
            with record.with_tensors(tensors).again(own):
                return self.program.fn(*own)

        return _graph(again, f"{self.program.name_for(given)}_of_{self.keeping.name}", given)

    def saving(self) -> _Again:
        return self

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor | None]:  # fmt: skip
        del saved
        own, tensors, _ = self._apart(operands)
        places = tuple([k for k in wanted if k < len(own)])
        given = tuple([k for k, cotangent in enumerate(cotangents) if cotangent is not None])
        pullback = self.program.pullback(places, given, len(own))
        again = [*own, *[cotangents[k] for k in given], *tensors]
        found = called(_Again(pullback, self.keeping), again)
        return [*found, *[None] * (len(wanted) - len(places))]

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int | None]]:
        own, tensors, _ = self._apart(operands)
        program, given = _mapped(self.program, own, dims[: len(own)], info)
        found = called(_Again(program, self.keeping), [*given, *tensors])
        return found, [0] * len(found)


def _graph(fn: Any, name: str, operands: Sequence[Any]) -> Sequence[Tensor]:
    """A call of a function as a graph of its own."""
    return invoke_subgraph(fn, name, *operands)  # type: ignore[no-any-return]  # it is torch's


def _mapped(
    program: NamedProgram, operands: Sequence[Any], dims: Sequence[int | None], info: Any
) -> tuple[NamedProgram, list[Any]]:
    """The program of all members, and operands in which they come first."""
    inside = [None if dim is None else 0 for dim in dims]
    given = [moved(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
    return _program_of(mapped(program.fn, inside, info)), given


def recompute_of(body: Any, policy: Policy | None) -> Recompute:
    """The call of a traced body; of one and the same body each time the same program."""
    program: NamedProgram | None = getattr(body, "_parallax_recompute", None)
    if program is None:
        program = body._parallax_recompute = _program_of(body)
    return Recompute(program, policy)


def _program_of(function: Function) -> NamedProgram:
    fn: Any = separate(function)
    return NamedProgram(fn, f"parallax_recomputed_{next(_count)}")


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
