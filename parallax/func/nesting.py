"""What a transform hands through besides its arguments: effects that a module emits inside of it.

Inside of ``vmap`` or ``torch.func.grad`` tensors are wrappers, which must not be recorded in a
collection outside. So the modules that a transform gets hold a collection of their own inside,
whose tensors are returned beside the result and recorded where the transform was called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor

from parallax.core.nodes import is_module
from parallax.effects import relaying
from parallax.tree import core
from parallax.tree.calls import bound

__all__ = ["Nesting"]


class Nesting:
    """A function and its arguments with modules that collect inside of a transform.

    Attributes:
        func: the function; one that is a module, or a method of one, holds that stand-in.
        args: the positional arguments.
        kwargs: the keyword arguments.
    """

    __slots__ = ("args", "func", "kwargs", "levels", "pairs")

    def __init__(
        self,
        func: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        levels: int = 1,
    ) -> None:
        self.levels = levels
        self.pairs: list[tuple[Any, Any]] = []
        self.func = self._function(func)
        self.args = tuple([self._within(arg) for arg in args])
        self.kwargs = (
            {name: self._within(arg) for name, arg in kwargs.items()} if kwargs else kwargs
        )

    def _function(self, func: Any) -> Callable[..., Any]:
        if is_module(func) or type(func) is MethodType:
            return self._within(func)  # type: ignore[no-any-return]  # callable as before
        if type(func) is not partial:
            return func  # type: ignore[no-any-return]  # it is one
        known = len(self.pairs)
        called = self._function(func.func)
        args = [self._within(arg) for arg in func.args]
        keywords = {name: self._within(arg) for name, arg in func.keywords.items()}
        return func if len(self.pairs) == known else partial(called, *args, **keywords)

    def _within(self, tree: Any) -> Any:
        """The tree with the stand-ins; the same tree where nothing is collected."""
        if is_module(tree):
            if relaying.nest(tree._rng, self.levels) is tree._rng:
                return tree
        elif type(tree) is MethodType:
            if not is_module(tree.__self__):
                return tree
            inner = self._within(tree.__self__)
            return tree if inner is tree.__self__ else bound(tree.__func__, inner)
        elif not isinstance(tree, (tuple, list, dict, partial)):
            return tree
        leaves, spec = core.opened(tree)
        known = len(self.pairs)
        rngs = [self._source(rng) for rng in spec.rngs]
        return tree if len(self.pairs) == known else spec.with_rngs(rngs).build(leaves)

    def _source(self, rng: Any) -> Any:
        inner = relaying.nest(rng, self.levels)
        if inner is not rng:
            self.pairs.append((rng, inner))
        return inner

    def call(self, args: Sequence[Any]) -> Any:
        """The function, called with these arguments; what it emitted when called before is gone."""
        for _, inner in self.pairs:
            relaying.forget(inner)
        return self.func(*args, **self.kwargs)

    def emitted(self) -> list[Tensor]:
        """All that was emitted inside, to be returned beside the result."""
        return [value for _, inner in self.pairs for value in relaying.emitted(inner)]

    def relay(self, values: Sequence[Tensor], aside: bool = False) -> None:
        """Records what came out where the transform was called; see ``effects.relay``."""
        start = 0
        for rng, inner in self.pairs:
            count = len(relaying.emitted(inner))
            relaying.relay(rng, inner, list(values[start : start + count]), aside)
            start += count
