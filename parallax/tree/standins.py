"""Trees whose tensors are stand-ins, to find shapes without computing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from parallax import random
from parallax._compat import fakes
from parallax.core.fields import Lazy
from parallax.effects.collection import source_of, with_source
from parallax.random.sources import KeySource, SeedSource
from parallax.tree import core

__all__ = ["StandIns", "outlined"]


class StandIns:
    """Stand-ins for the tensors of some trees.

    Declarations without a value have one, too. A tensor on the meta device stands for one on the
    device of the first other tensor.

    Args:
        *trees: those that will be asked for.
    """

    def __init__(self, *trees: Any) -> None:
        leaves = [leaf for tree in trees for leaf in core.opened(tree)[0]]
        devices = [leaf.device for leaf in leaves if isinstance(leaf, Tensor)]
        real = [device for device in devices if device.type != "meta"]
        self.fakes = fakes.Fakes(real[0] if real else torch.device("cpu"))

    def of(self, tree: Any) -> Any:
        """A tree in which stand-ins take the place of tensors."""
        leaves, spec = core.opened(tree)
        if any([rng is not None for rng in spec.rngs]):
            spec = spec.with_rngs([self._rng(rng) for rng in spec.rngs])
        return spec.build([self._leaf(leaf) for leaf in leaves])

    def _leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Lazy):
            return self.fakes.empty(leaf.shape, leaf.dtype)
        return self.fakes.of(leaf) if isinstance(leaf, Tensor) else leaf

    def _rng(self, rng: Any) -> Any:
        """A key in place of a seed or generator, whose state has numbers that are looked at."""
        source = source_of(rng)
        if type(source) is SeedSource:
            return with_source(rng, self.source())
        if source is None or source.key is None:
            return rng
        return with_source(rng, source.with_key(self.fakes.of(source.key)))

    def source(self) -> KeySource:
        """A source of random numbers, for a module that was given none."""
        return KeySource(self.fakes.of(random.key(0).data))

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Code that runs on stand-ins.

        Raises:
            RuntimeError: if it asks for numbers.
        """
        try:
            with self.fakes.mode:
                yield
        except fakes.needs_numbers() as error:
            raise RuntimeError(
                f"{what}: the function looks at numbers, or has results whose shapes depend on "
                f"them: {_first_line(error)}. Shapes alone cannot tell; call the function itself"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def outlined(tree: Any) -> Any:
    """A tree of tensors on the meta device, for one of stand-ins."""
    leaves, spec = core.opened(tree)
    known: dict[int, Tensor] = {}
    made = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            made.append(known.setdefault(id(leaf), fakes.on_meta(leaf)))
        else:
            made.append(leaf)
    return spec.with_rngs([None] * len(spec.rngs)).build(made)
