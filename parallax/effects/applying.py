"""Putting what was emitted in the place of the buffers, several values merged by their rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax import _compat, notes, tracing
from parallax.effects.collection import Address, Collection, EffectError, check_rules, root_of
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
        traced, outline = tracing.take_apart(module)
        index = outline.expanded(list(range(outline.n_leaves)))
        split = [path.rpartition(".") for path in outline.place_paths()]
        places = {(path, name): k for (path, _, name), k in zip(split, index)}  # noqa: B905  # dynamo traces no strict=
        return tracing.rebuild(outline, _merged(traced, places, collection, root), module._rng)
    leaves, structure = flatten_module(module)
    merged = _merged(leaves, structure.addresses, collection, root)
    return unflatten_module(structure, merged, module._rng)


def _merged(
    held: Sequence[Any], places: dict[Address, int], collection: Collection, root: str
) -> list[Any]:
    leaves = list(held)
    changed: dict[int, tuple[str | None, list[Tensor]]] = {}
    for address, (rule, values) in (collection.emissions or {}).items():
        index = places.get((below(root, address[0]), address[1]) if root else address)
        if index is None:
            raise EffectError(
                f"an effect for {notes.joined(*address)!r}, and the module that is collected has "
                f"no such leaf. Collect around the module that emits"
            )
        before = changed.get(index)
        if before is not None:  # a tied buffer, met in two places
            check_rules(address, before[0], rule)
            values = before[1] + values  # noqa: PLW2901  # those of both places
        changed[index] = rule, values
    for index, (rule, values) in changed.items():
        leaves[index] = _one(values, rule, leaves[index].ndim)
    return leaves


def _one(values: list[Tensor], rule: str | None, ndim: int) -> Tensor:
    """The one value that several for a buffer become."""
    if len(values) == 1 and values[0].ndim == ndim:
        return values[0]
    values = [_unmapped(value, rule, ndim) for value in values]
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
