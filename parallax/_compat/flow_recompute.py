"""A compiled function that is computed once more for its derivative."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._higher_order_ops.invoke_subgraph import invoke_subgraph
from torch.utils._python_dispatch import TorchDispatchMode

from parallax._compat.flow_programs import (
    Function,
    called,
    mapped,
    moved,
    pulled_back,
    separate,
    unaliased,
)  # fmt: skip

__all__ = ["Recompute", "draws"]

_count = itertools.count()


class Recompute(NamedTuple):
    """A call of a function that is a graph of its own, so that no two calls are made one."""

    function: Function

    saved: int = 0

    def run(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        return self.function(*operands)

    def emit(self, operands: Sequence[Any]) -> Sequence[Tensor]:
        fn: Any = separate(self.function)
        name = f"parallax_recomputed_{next(_count)}"
        return invoke_subgraph(fn, name, *unaliased(operands))  # type: ignore[no-any-return]  # it is torch's

    def saving(self) -> Recompute:
        return self

    def backward(
        self, operands: Sequence[Any], saved: Sequence[Tensor],
        cotangents: Sequence[Tensor | None], wanted: Sequence[int],
    ) -> Sequence[Tensor]:  # fmt: skip
        """The function once more, and the vector-Jacobian product, as such a call again."""
        del saved
        count = len(operands)
        given = [k for k, cotangent in enumerate(cotangents) if cotangent is not None]

        def back(*values: Any) -> Sequence[Tensor]:
            return pulled_back(self.function, values[:count], wanted, given, values[count:])

        return called(Recompute(back), [*operands, *[cotangents[k] for k in given]])

    def mapped(
        self, operands: Sequence[Any], dims: Sequence[int | None], info: Any
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        inside = [None if dim is None else 0 for dim in dims]
        given = [moved(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
        found = called(Recompute(mapped(self.function, inside, info)), given)
        return found, [0] * len(found)


class _Draws(TorchDispatchMode):
    """Notes whether an operator draws from torch's random state."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self.found: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def draws(body: Any, examples: Sequence[Any]) -> bool:
    """Whether a traced body draws from torch's random state, which a second call would not repeat.

    Args:
        body: a graph.
        examples: stand-ins for what it takes.
    """
    mode = _Draws()
    with mode:
        body(*examples)
    return mode.found
