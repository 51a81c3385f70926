"""One call of a lowered module: its random state, and the buffers it writes at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parallax._compat import dynamo, functorch
from parallax.bridge.places import gathered, structure_in
from parallax.bridge.proxies import proxy_of
from parallax.core.structure import Structure
from parallax.effects.applying import merged
from parallax.effects.collection import Collecting, Collection
from parallax.random.sources import GlobalSource

__all__ = ["Run"]


class Run:
    """A call of a lowered module, as a context: ``with Run(module) as (call, tree)``.

    ``call`` is the code of the tree's class and ``tree`` what it is called with. When the context
    ends without an error, effects are written.
    """

    __slots__ = ("asked", "held", "module", "tree")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.asked = False
        self.held: Collecting | None = None
        self.tree: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        self.tree = proxy_of(self.module, self, "")
        return structure_in(self.module).cls.__call__, self.tree

    def __exit__(self, error: Any, *_: Any) -> None:
        if self.held is not None:
            self.held.collection.over = True
            if error is None and self.held.collection.emissions:
                self._write(self.held.collection.emissions)

    def rng(self) -> Collecting | None:
        """What the tree holds as rng: a collection and torch's generator, if it is in training."""
        if not self.asked:
            self.asked = True
            module = self.module
            if module.training or any([part.training for part in module.modules()]):
                self.held = Collecting(Collection([], None), _drawn_source())
        return self.held

    def _write(self, emissions: Any) -> None:
        """Writes what was emitted into the buffers that it is for."""
        structure: Structure = structure_in(self.module)
        leaves = gathered(self.module, structure)
        written = merged(self.tree, leaves, structure, emissions)
        with torch.no_grad():
            for leaf, new in zip(leaves, written, strict=True):
                if leaf is not None and new is not leaf:
                    leaf.copy_(new)


def _drawn_source() -> Any:
    """An rng from torch's global generator; none under ``vmap``, in which it may not draw."""
    if not dynamo.is_compiling() and functorch.vmap_active():
        return None
    return GlobalSource()
