"""Whether a traced function draws from torch's random state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from parallax._compat import functorch, shards

__all__ = ["draws"]


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
    tensors = [x for x in examples if isinstance(x, Tensor)]
    if shards.any_distributed(map(functorch.innermost, tensors)):
        return False  # such are not computed again
    mode = _Draws()
    with mode:
        body(*examples)
    return mode.found
