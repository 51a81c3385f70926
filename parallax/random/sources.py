"""What a tree holds as rng: one value for all its modules, derived where ``self.rng`` is read.

``rng`` may be given in four forms, and a module's own state comes in the form the tree was given:

- a ``Key`` (or a stack of keys, for an ensemble): a leaf, that can be vmapped and traced;
- an int seed, a ``torch.Generator``, or a generator's state as a ByteTensor: constants, opaque
  to transforms.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes
from parallax._errors.arguments import shown
from parallax.random.keys import Key, child_of, from_state, key, rows_of
from parallax.random.marks import join, mark_of
from parallax.random.seeds import derive, digest, generator_of, state_of
from parallax.random.uses import Mark

__all__ = ["GlobalSource", "KeySource", "Rng", "SeedSource", "Source", "as_key", "member_source",
           "seed_of", "source_of", "stack_sources", "warn_if_same"]  # fmt: skip

Rng = Key | int | torch.Generator | Tensor
"""What can be given as ``rng``: a key, a seed, a generator, or its state as a ByteTensor."""


class Seed(int):
    """A module's seed, which knows whether it was used; as a number it is an int like any other."""

    mark: Mark

    def __reduce__(self) -> Any:
        return int, (int(self),)


class _Generator(torch.Generator):
    """A module's generator, which knows whether it was used."""

    mark: Mark


class SeedSource:
    """The random state of a tree that was given as a seed, a generator or its state.

    Attributes:
        seed: 64 bits.
        form: what modules get: ``"seed"``, ``"generator"`` or ``"state"``.
        mark: what of it was used.
    """

    __slots__ = ("form", "mark", "seed")

    key: Tensor | None = None

    def __init__(self, seed: int, form: str, mark: Mark | None = None) -> None:
        self.seed = seed
        self.form = form
        self.mark = mark or Mark()

    def of(self, name: str) -> Any:
        """The rng of the module that ``name`` is for, in the form that was given."""
        if dynamo.is_compiling():
            raise RuntimeError(
                "self.rng in compiled code needs a key, not a seed, a generator or a state. "
                "Hand one out: module.train(random.key(seed))"
            )
        seed, mark = derive(self.seed, "module", name), self.mark.child(name)
        mark.path = name
        if self.form == "seed":
            found = Seed(seed % 2**63)
            found.mark = mark
            return found
        if self.form == "generator":
            generator = _Generator()
            generator.set_state(state_of(seed))
            generator.mark = mark
            return generator
        state: Any = state_of(seed)
        state._mark = mark
        return state

    def child(self, name: str) -> SeedSource:
        """The source for a part of the tree, such as one of several equal modules."""
        mark = self.mark.child(("part", name))
        return SeedSource(derive(self.seed, "part", name), self.form, mark)

    def __repr__(self) -> str:
        return f"SeedSource({self.form})"

    def __reduce__(self) -> Any:
        return SeedSource, (self.seed, self.form)


class KeySource:
    """The random state of a tree that was given as a key.

    Attributes:
        key: the key's leaf; of a stacked tree a stack of keys.
    """

    __slots__ = ("key",)

    def __init__(self, key: Any) -> None:
        self.key = key

    def of(self, name: str) -> Key:
        """The key of the module that ``name`` is for; the same leaf each time it is asked."""
        return child_of(self.key, name)

    def child(self, name: str) -> KeySource:
        """The source for a part of the tree, such as one of several equal modules."""
        return KeySource(child_of(self.key, f"part {name}").data)

    def with_key(self, key: Any) -> KeySource:
        """This source around another leaf."""
        return KeySource(key)

    def __repr__(self) -> str:
        return f"KeySource({tuple(getattr(self.key, 'shape', ()))})"

    def __reduce__(self) -> Any:
        return KeySource, (self.key,)


class GlobalSource:
    """An rng that draws from torch's global generator whenever it is asked, as ``torch.nn`` does.

    It is what a lowered tree holds in training: each use of a module gets numbers of its own, and
    ``torch.utils.checkpoint`` gives a recomputation the same again.
    """

    __slots__ = ()

    key: Tensor | None = None

    def of(self, name: str) -> Any:
        """The rng of the module that ``name`` is for: a generator, while traced a key."""
        drawn = torch.randint(2**62, ())
        if dynamo.is_compiling() or modes.dispatch_mode_active():
            return Key(drawn)
        return generator_of(int(drawn))

    def child(self, name: str) -> GlobalSource:
        """The source for a part of the tree: this one."""
        return self

    def __repr__(self) -> str:
        return "GlobalSource()"


Source = SeedSource | KeySource | GlobalSource
"""What a tree holds as its random state: a seed, a key, or torch's global generator."""


_generators: weakref.WeakKeyDictionary[torch.Generator, Mark] = weakref.WeakKeyDictionary()
"""What is known of the use of generators, on which nothing can be kept."""


def source_of(rng: Rng) -> Source:
    """What a tree holds when it is given ``rng``, which is only read.

    Raises:
        TypeError: if ``rng`` has none of these forms.
    """
    if type(rng) is Key:
        return KeySource(rng.data)
    if isinstance(rng, torch.Generator):
        seed = digest(rng.get_state())
        mark = _generators.setdefault(rng, Mark())
        return SeedSource(seed, "generator", mark.child(seed))  # it may move on
    if isinstance(rng, Tensor) and rng.dtype is torch.uint8 and rng.ndim == 1:
        seed = digest(rng)
        return SeedSource(seed, "state", mark_of(rng).child(seed))
    if isinstance(rng, int) and not isinstance(rng, bool):
        return SeedSource(derive(rng, "seed"), "seed")
    flag = ". Write module.train() or module.eval()" if isinstance(rng, bool) else ""
    raise TypeError(
        f"rng must be a Key, an int seed, a torch.Generator, or a generator's state such as "
        f"torch.random.get_rng_state(); got {shown(rng)}{flag}"
    )


def seed_of(rng: Rng) -> int:
    """The 64-bit seed that any form of ``rng`` stands for; the form itself is only read.

    Raises:
        TypeError: if ``rng`` has none of these forms.
        ValueError: if it is a stack of keys.
    """
    source: Any = source_of(rng)
    if type(source) is SeedSource:
        return source.seed
    if source.key.ndim:
        raise ValueError(
            f"expected a single key, got a stack of shape {tuple(source.key.shape)}. For an "
            f"ensemble make one module per key: tree.stack([m.initialize(k) for k in keys])"
        )
    return int(source.key) % 2**64


def as_key(rng: Rng) -> Key:
    """The key that any form of ``rng`` stands for: what a layer draws with.

    Args:
        rng: a key, which is returned as it is, an int seed, a generator or its state.

    Returns:
        A key.

    Raises:
        TypeError: if ``rng`` has none of these forms.

    Example:
        >>> from parallax import Module, random
        >>> class Noise(Module):
        ...     def forward(self, x):
        ...         return x + random.normal(random.as_key(self.rng), x.shape)
    """
    if type(rng) is Key:
        return rng
    if isinstance(rng, int) and not isinstance(rng, bool):
        return key(rng)
    if isinstance(rng, torch.Generator) or (isinstance(rng, Tensor) and rng.dtype is torch.uint8):
        return from_state(rng)
    raise TypeError(
        f"as_key(rng): expected a Key, an int, a torch.Generator or a ByteTensor, "
        f"got {shown(rng)}. Write as_key(0)"
    )


def stack_sources(sources: Sequence[Any]) -> Any:
    """What a stack of trees holds: a stack of keys, whatever form each tree was given.

    Args:
        sources: what each tree holds, ``None`` for none.

    Returns:
        The source of the stacked tree; ``None`` if no tree holds one.

    Raises:
        ValueError: if some trees hold one and others do not.
    """
    if all(source is None for source in sources):
        return None
    if all([type(source) is GlobalSource for source in sources]):
        return sources[0]
    leaves = []
    for index, source in enumerate(sources):
        if source is None:
            raise ValueError(
                f"some trees hold an rng and tree {index} does not. Hand one to all: "
                f"[m.train(k) for m, k in zip(modules, random.split(key, {len(sources)}))]"
            )
        leaves.append(key(source.seed).data if source.key is None else source.key)
    stack = torch.stack(leaves)
    join(stack, leaves)
    return KeySource(stack)


def member_source(source: Any, index: int) -> Any:
    """What a member of a stacked tree holds: its key in a stack of keys."""
    if source is None or source.key is None or source.key.ndim == 0:
        return source
    return source.with_key(rows_of(source.key)[index])


def warn_if_same(new: Source, before: Any) -> None:
    """Warns when a tree is given the random state that it has already."""
    if before is None or dynamo.is_compiling() or functorch.transform_active():
        return
    if new.key is None or before.key is None:
        same = new.key is before.key and new.seed == before.seed  # type: ignore[union-attr]  # both seeds
    else:
        same = new.key is before.key or torch.equal(new.key, before.key)
    if same:
        warnings.warn(
            "reset() was given the state this tree already has, so every random number repeats. "
            "Give each step its own: rng = torch.random.get_rng_state(), a seed that counts, or "
            "random.fold_in(key, step).",
            UserWarning,
            stacklevel=4,  # who calls Module.reset
        )
