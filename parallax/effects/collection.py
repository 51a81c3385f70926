"""What is being collected, and how it travels: with the tree, where the rng travels too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from parallax._compat import autograd, dynamo, functorch
from parallax.core import notes
from parallax.effects.watches import Watch

__all__ = ["Collecting", "Collection", "EffectError", "Emission", "Sown", "apart", "root_of",
           "source_of", "with_source"]  # fmt: skip

_numbers = itertools.count()
_apart: ContextVar[int] = ContextVar("apart", default=-1)


@contextmanager
def apart() -> Iterator[None]:
    """Within it tensors have no graph; what collections hold that are made within gets one later.

    A collection from outside would get tensors without a graph: ``Collection.is_apart`` says so.
    """
    token = _apart.set(next(_numbers))
    try:
        yield
    finally:
        _apart.reset(token)


class EffectError(RuntimeError):
    """An effect cannot be collected: nothing collects it, or it contradicts another one.

    Example:
        >>> import torch
        >>> from parallax import effects, nn
        >>> norm = nn.BatchNorm1d(2).initialize(0)  # in training mode it emits running statistics
        >>> x = torch.ones(4, 2)
        >>> try:
        ...     norm(x)
        ... except effects.EffectError:
        ...     y, norm = effects.collect(lambda norm, x: norm(x))(norm, x)
        >>> norm.num_batches_tracked
        tensor(1)
    """


Emission = tuple[str, str | None, dict[str, Any], bool]
"""The path of a module and what it emitted at once: the rule, values by the buffer's name, and
whether they came out of a transform, so that a mapped dimension may stand in front."""

Sown = dict[tuple[str, str], list[Tensor]]
"""By the path of a module and a name, the intermediates it sowed."""


class Collection:
    """What is being collected for one call.

    Attributes:
        emissions: in the order they were made; ``None`` when they are not collected.
        sown: ``None`` when intermediates are not captured.
        outer: the collection around the transform in which this one is; ``None`` outside.
        watches: what watches modules of the tree, outermost first.
        recorder: the only one of them, if it does nothing but record.
        enters: whether one of them is told when a call begins, too.
        surrounds: whether one of them makes the call.
        level: how many transforms ran when it began; deeper wrappers must not get in.
        backward: whether it began within autograd's backward.
        again: whether it stands in for one that began before, while a checkpoint runs once more.
        number: the larger, the later it began.
        over: whether the call has returned.
    """

    __slots__ = (
        "again", "backward", "emissions", "enters", "level", "number", "outer", "over", "recorder",
        "sown", "surrounds", "watches",
    )  # fmt: skip

    def __init__(
        self,
        emissions: list[Emission] | None,
        sown: Sown | None,
        outer: Collection | None = None,
        watches: tuple[Watch, ...] = (),
    ) -> None:
        self.emissions = emissions
        self.sown = sown
        self.watches = watches
        self.recorder: Watch | None = None
        self.enters = self.surrounds = False
        if watches:
            self.enters = any([watch.enters for watch in watches])
            self.surrounds = any([watch.surrounds for watch in watches])
            if len(watches) == 1 and not (watches[0].changes or self.enters or self.surrounds):
                self.recorder = watches[0]
        self.outer = outer
        self.over = False
        self.level = 0
        self.backward = False
        self.number = 0
        if not dynamo.is_compiling():
            self.number = next(_numbers)
            self.level = functorch.current_level()
            self.backward = autograd.in_backward()
        self.again = self.backward and outer is not None and not outer.backward

    def is_apart(self) -> bool:
        """Whether it began outside of a block of ``apart`` that this code runs in."""
        return self.number < _apart.get()

    def recomputes(self, said: bool) -> bool:
        """Whether what is said within autograd's backward is the forward again, by a checkpoint.

        That runs with gradients enabled and comes to the same places. What comes to others, or
        runs without gradients, is a hook, which speaks for the first time.

        Args:
            said: whether the same was said before.
        """
        return said and not self.backward and torch.is_grad_enabled()


class Collecting:
    """What a tree under collection holds as rng: the collection, and the rng proper."""

    __slots__ = ("collection", "source")

    def __init__(self, collection: Collection, source: Any) -> None:
        self.collection = collection
        self.source = source

    @property
    def key(self) -> Any:
        """The leaf of the rng, if it is a key."""
        return None if self.source is None else self.source.key

    def with_key(self, key: Any) -> Collecting:
        """The same collection, with the rng around another leaf."""
        return Collecting(self.collection, self.source.with_key(key))

    def called(self, places: tuple[Any, ...]) -> None:
        """A watched module is called, which may stand in several places."""
        for watch, path in self._watches(places):
            watch.called(path)

    def surrounded(self, places: tuple[Any, ...], call: Callable[..., Any]) -> Callable[..., Any]:
        """What makes the call of a watched module in place of ``call``."""
        for watch, path in reversed(self._watches(places)):
            if watch.surrounds:
                call = watch.around(path, call, self.collection)
        return call

    def returned(
        self, places: tuple[Any, ...], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        """What a watched module's call returns in place of ``out``.

        Changes come first, inner ones before outer ones: what is recorded is what flows on.
        """
        watches = self._watches(places)
        for watch, path in reversed(watches):
            if watch.changes:
                out = watch.changed(path, out, self.collection)
        for watch, path in watches:
            if not watch.changes:
                watch.returned(path, args, kwargs, out, self.collection)
        return out

    def _watches(self, places: tuple[Any, ...]) -> list[tuple[Watch, str]]:
        """What watches a module, outermost first, and the path that it knows it by."""
        found = []
        for watch in self.collection.watches:
            for place in places:
                path = notes.note_of(place).path or ""
                if path in watch.paths:
                    found.append((watch, path))
                    break
        return found

    def __reduce__(self) -> Any:
        # A copy would never be read: what is loaded is outside of the collection.
        return _itself, (self.source,)


def _itself(source: Any) -> Any:
    return source


def source_of(rng: Any) -> Any:
    """The random state of a tree, taken out of a collection."""
    return rng.source if type(rng) is Collecting else rng


def with_source(rng: Any, source: Any) -> Any:
    """What a tree holds that is given another rng: a collection goes on."""
    return Collecting(rng.collection, source) if type(rng) is Collecting else source


def root_of(module: Any) -> str:
    """Where a module's paths begin: within a collection it keeps the ones it has."""
    return (notes.note_of(module).path or "") if type(module._rng) is Collecting else ""
