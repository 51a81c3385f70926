"""Putting what was emitted in the place of the buffers, several values merged by their rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parallax import _compat, tracing
from parallax.effects.collection import Collection, EffectError, Emission, add, root_of
from parallax.registry import flatten_module, unflatten_module

__all__ = ["applied", "below"]


def below(root: str, path: str) -> str:
    """A path as it is below ``root``."""
    return path[len(root) + 1 :] if root else path


def applied(module: Any, collection: Collection) -> Any:
    """The module with the emissions in the place of its buffers."""
    if not collection.emissions:
        return module
    root = root_of(module)
    if _compat.is_compiling():
        leaves, outline = tracing.take_apart(module)
        index = outline.expanded(list(range(outline.n_leaves)))
        places = {path: index[k] for k, path in enumerate(outline.place_paths())}
        return tracing.rebuild(outline, _merged(leaves, places, collection, root), module._rng)
    held, structure = flatten_module(module)
    merged = _merged(held, structure.place_index, collection, root)
    return unflatten_module(structure, merged, module._rng)


def _merged(held: Any, places: dict[str, int], collection: Collection, root: str) -> list[Any]:
    leaves = list(held)
    changed: dict[int, list[Emission]] = {}
    for path, emissions in (collection.emissions or {}).items():
        index = places.get(below(root, path))
        if index is None:
            raise EffectError(
                f"an effect for {path!r}, and the module that is collected has no such leaf. "
                f"Collect around the module that emits"
            )
        for emission in emissions:
            if index in changed:
                if len(emissions) == 1:  # a tied buffer, met in two places
                    add({path: changed[index]}, path, emission)
                else:
                    changed[index].append(emission)
            else:
                changed[index] = [emission]
    for index, emissions in changed.items():
        leaves[index] = _one(emissions, leaves[index])
    return leaves


def _one(emissions: list[Emission], held: Tensor) -> Tensor:
    """The one value that several emissions for a buffer become."""
    rule = emissions[0].merge
    values = [_unmapped(value, rule, held.ndim) for value, _ in emissions]
    if len(values) == 1 or rule == "last":
        return values[-1]
    return _reduced(torch.stack(values), rule)


def _unmapped(value: Tensor, rule: str | None, ndim: int) -> Tensor:
    """A value that came out of vmap, merged over what was mapped and the buffer is not."""
    while value.ndim > ndim:
        if rule is None:
            raise EffectError(
                f"an effect of shape {tuple(value.shape)} came out of vmap, one per mapped "
                f"example, for a buffer of {ndim} dimensions. Say how they become one: "
                f"self.emit(..., merge='mean'), or 'last', or 'sum'"
            )
        value = value[-1] if rule == "last" else _reduced(value, rule)
    return value


def _reduced(values: Tensor, rule: str | None) -> Tensor:
    if rule == "sum":
        return values.sum(0, dtype=values.dtype)
    if not values.dtype.is_floating_point and not values.dtype.is_complex:
        raise EffectError(
            f"merge='mean' of {values.dtype} is no {values.dtype}. Emit such a buffer by itself "
            f"with merge='last' or merge='sum'"
        )
    return values.mean(0)
