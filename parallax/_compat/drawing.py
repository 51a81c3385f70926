"""Whether a traced function draws from torch's random state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Interpreter
from torch.utils._python_dispatch import TorchDispatchMode

from parallax._compat import functorch, shards

__all__ = ["draws"]


class _Draws(TorchDispatchMode):
    """Notes whether an operator draws from torch's random state."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # it is torch's
        self.found: bool = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found = self.found or not _is_without_dropout(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _is_without_dropout(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operator has a rate of dropout, as attention has, and it is 0."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else argument.default_value
            return bool(kwargs.get("dropout_p", given) == 0)
    return False


class _Run(Interpreter):
    """A run of a graph on stand-ins, in which loops and branches are not run but looked into."""

    def __init__(self, body: GraphModule) -> None:
        super().__init__(body)
        self.inner: list[GraphModule] = []
        self._node: Any = None

    def run_node(self, n: Any) -> Any:
        self._node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not isinstance(target, HigherOrderOperator):
            return super().call_function(target, args, kwargs)
        self.inner += [arg for arg in args if isinstance(arg, GraphModule)]
        return self._node.meta["example_value"]


def draws(body: Any, examples: Sequence[Any]) -> bool:
    """Whether a traced body draws from torch's random state, which a second call would not repeat.

    Args:
        body: a graph.
        examples: stand-ins for what it takes.
    """
    tensors = [x for x in examples if isinstance(x, Tensor)]
    if shards.any_distributed(map(functorch.innermost, tensors)):
        return False  # such are not computed again
    mode, run = _Draws(), _Run(body)
    with mode:
        run.run(*examples)
    return mode.found or any([draws(inner, _taken_by(inner)) for inner in run.inner])


def _taken_by(body: GraphModule) -> list[Any]:
    """The stand-ins with which dynamo traced a graph."""
    return [node.meta["example_value"] for node in body.graph.find_nodes(op="placeholder")]
