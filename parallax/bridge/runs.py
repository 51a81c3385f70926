"""One call of a lowered module: what it draws from, and what it writes when it is over."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parallax._compat import dynamo, functorch
from parallax.bridge.places import gathered
from parallax.core.structure import Structure
from parallax.effects.applying import merged
from parallax.effects.collection import Collecting, Collection
from parallax.random.sources import GlobalSource

__all__ = ["Run"]


class Run:
    """A call of a lowered module."""

    __slots__ = ("asked", "held", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.asked = False
        self.held: Collecting | None = None

    def rng(self) -> Collecting | None:
        """What the tree holds as rng: a collection and torch's generator, if it is in training."""
        if not self.asked:
            self.asked = True
            module = self.module
            if module.training or any([part.training for part in module.modules()]):
                self.held = Collecting(Collection([], None), _drawn_source())
        return self.held

    def write(self, structure: Structure, tree: Any) -> None:
        """Writes what was emitted into the buffers that it is for.

        Args:
            structure: of the module.
            tree: its proxy.
        """
        if self.held is None or not self.held.collection.emissions:
            return
        leaves = gathered(self.module, structure)
        written = merged(tree, leaves, structure.buffers, self.held.collection.emissions)
        with torch.no_grad():
            for leaf, new in zip(leaves, written, strict=True):
                if leaf is not None and new is not leaf:
                    leaf.copy_(new)

    def end(self) -> None:
        """What is emitted from now on comes too late."""
        if self.held is not None:
            self.held.collection.over = True


def _drawn_source() -> Any:
    """An rng from torch's global generator; none under a transform, which may not draw."""
    if not dynamo.is_compiling() and functorch.transform_active():
        return None
    return GlobalSource()
