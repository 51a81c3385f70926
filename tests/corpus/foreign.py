"""A registered class of someone else as a child."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import init

from parallax import Module, Parameter, registry
from tests.corpus.leaves import SIZE, Dense


class Foreign:
    """A class that knows nothing of modules, registered below."""

    def __init__(self, left: Any, right: Any, tag: str) -> None:
        self.left, self.right, self.tag = left, right, tag


registry.register(
    Foreign,
    lambda pair: ((pair.left, pair.right), pair.tag),
    lambda tag, children: Foreign(children[0], children[1], tag),
    name="tests.Foreign",
)


class Holder(Module):
    """A registered class as a child, with a module and a tensor inside."""

    pair: Foreign

    def __init__(self) -> None:
        super().__init__()
        self.pair = Foreign(Dense(), Parameter((SIZE,), init.ones_), "tag")

    def forward(self, x: Tensor) -> Tensor:
        return self.pair.left(x) + self.pair.right  # type: ignore[no-any-return]  # a Foreign holds anything
