"""What tests of compiled functions share; the fixture ``fresh_dynamo`` is in ``conftest``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import parallax


def make_compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``parallax.compile``, of functions without types, too."""
    return parallax.compile(fn, **options)


def graphs() -> int:
    """How many graphs dynamo has made since the test began."""
    return counters["stats"]["unique_graphs"]


def compiled(fn: Callable[..., Any]) -> tuple[Callable[..., Any], CompileCounter]:
    """``torch.compile`` without breaks, and what counts the frames that it compiles."""
    counter = CompileCounter()
    return torch.compile(fn, backend=counter, fullgraph=True), counter
