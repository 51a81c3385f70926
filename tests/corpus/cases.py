"""One entry of the corpus, and the input it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from parallax import Module, tree
from tests.corpus.leaves import SIZE


@dataclass(frozen=True)
class Case:
    """One module of the corpus.

    Attributes:
        name: what pytest shows.
        declare: makes the module, uninitialised.
        make_twin: makes its twin in ``torch.nn``, of equal names and shapes.
        real: whether every leaf is a real float and the module can be called.
        tied: whether one leaf stands in two places.
        change: what is done to the module after ``initialize``.
    """

    name: str
    declare: Callable[[], Module]
    make_twin: Callable[[], nn.Module] | None = None
    real: bool = True
    tied: bool = False
    change: Callable[[Any], Any] = field(default=lambda module: module)

    def make(self, seed: int = 0) -> Any:
        """The module with values."""
        declared = self.declare()
        lazy = tree.leaves(declared)
        return self.change(declared.initialize(seed) if lazy else declared)

    def twin(self, module: Module) -> nn.Module:
        """The ``torch.nn`` module that holds copies of ``module``'s leaves."""
        assert self.make_twin is not None
        made, leaves = self.make_twin(), tree.named_leaves(module)
        targets = dict(made.named_parameters()) | dict(made.named_buffers())
        assert set(targets) == set(leaves)
        with torch.no_grad():
            for path, target in targets.items():
                target.copy_(leaves[path])
        return made.eval()

    def __str__(self) -> str:
        return self.name


def example_input(seed: int = 0) -> Tensor:
    """A batch that every module of the corpus with a ``forward`` takes."""
    return torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed))
