"""What tests of compiled functions share; the fixture ``fresh_dynamo`` is in ``conftest``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.fx import GraphModule

import parallax


def make_compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``parallax.compile``, of functions without types, too."""
    compiled: Callable[..., Any] = parallax.compile(fn, **options)
    return compiled


def graphs() -> int:
    """How many graphs dynamo has made since the test began."""
    return counters["stats"]["unique_graphs"]


def eager_and_aot(graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """A backend: the graph as it is and through AOTAutograd, between which no difference passes."""
    traced = lookup_backend("aot_eager")(graph, inputs)

    def run(*args: Any) -> Any:
        one, other = graph(*args), traced(*args)
        torch.testing.assert_close(list(other), list(one))
        return other

    return run


def compiled(fn: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    """``torch.compile`` without breaks, and what counts the frames that it compiles."""
    counter = CompileCounter()
    return torch.compile(fn, backend=counter, fullgraph=True), counter
