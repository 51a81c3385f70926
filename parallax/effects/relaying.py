"""Effects in transforms whose tensors are wrappers: collected inside, recorded outside."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax.core import notes
from parallax.effects.collection import Collecting, Collection, EffectError

__all__ = ["emitted", "forget", "nest", "relay"]


def nest(rng: Any, levels: int = 1) -> Any:
    """What a module holds within a transform: a collection of its own where one is under way.

    A transform whose tensors are wrappers (``vmap``, ``torch.func.grad``) calls its function with
    modules that hold ``inner = nest(module._rng)``, made just before it begins, returns
    ``emitted(inner)`` beside the function's result, and outside calls
    ``relay(module._rng, inner, values)``.

    Args:
        rng: what the module holds outside.
        levels: how many transforms are about to begin, one in the other.

    Returns:
        What it holds inside; ``rng`` itself when nothing is collected.
    """
    if type(rng) is not Collecting:
        return rng
    outer = rng.collection
    emissions: Any = None if outer.emissions is None else []
    sown: Any = None if outer.sown is None else {}
    watches = tuple([watch.within() for watch in outer.watches])
    inner = Collection(emissions, sown, outer, watches)
    inner.level += levels
    return Collecting(inner, rng.source)


def forget(inner: Any) -> None:
    """Empties a nested collection: the transform calls its function once more, for a next chunk."""
    if type(inner) is Collecting:
        if inner.collection.emissions is not None:
            inner.collection.emissions.clear()
        if inner.collection.sown is not None:
            inner.collection.sown.clear()
        for watch in inner.collection.watches:
            watch.calls.clear()


def emitted(inner: Any) -> list[Tensor]:
    """All that a nested collection holds, to be returned from the transform."""
    if type(inner) is not Collecting:
        return []
    collection = inner.collection
    emissions = collection.emissions or []
    values = [value for _, _, buffers, _ in emissions for value in buffers.values()]
    values += [value for values in (collection.sown or {}).values() for value in values]
    return values + [value for watch in collection.watches for value in watch.tensors()]


def relay(rng: Any, inner: Any, values: list[Tensor], aside: bool = False) -> None:
    """Records what came out of a transform where the transform was called.

    Args:
        rng: what the module holds outside.
        inner: what it held inside.
        values: ``emitted(inner)`` as the transform returned it; a mapped dimension comes first,
            and is merged by the rule of the emission where the buffer is not mapped.
        aside: whether modules are mapped elsewhere than in their first dimension.

    Raises:
        EffectError: if they are, and something was emitted: it would be put in crosswise.
    """
    if type(inner) is not Collecting:
        return
    outer, collection, given = rng.collection, inner.collection, iter(values)
    collection.over = True
    if aside and collection.emissions:
        path, _, buffers, _ = collection.emissions[0]
        raise EffectError(
            f"the effect of {notes.joined(path, next(iter(buffers), ''))!r} "
            f"came out of a vmap over another dimension of the module than its first. Map modules "
            f"over dimension 0, as tree.stack makes them: in_dims=(0, ...)"
        )
    for path, rule, buffers, _ in collection.emissions or []:
        outer.emissions.append((path, rule, {name: next(given) for name in buffers}, True))
    for address, sown in (collection.sown or {}).items():
        outer.sown.setdefault(address, []).extend([next(given) for _ in sown])
    for watch in collection.watches:
        watch.hand_on(given)
