"""Putting what was emitted in the place of the buffers, several values merged by their rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import functorch
from parallax._compat.opaque import real
from parallax.core import notes
from parallax.core.entries import BUFFER
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure, derived
from parallax.effects.collection import Collection, EffectError, Emission, root_of
from parallax.effects.emitting import IN_TURN, RULES, check

__all__ = ["applied", "below", "merged"]


def below(root: str, path: str) -> str:
    """A path as it is below ``root``."""
    return path[len(root) + 1 :] if root else path


def applied(module: Any, collection: Collection) -> Any:
    """The module with the emissions in the place of its buffers."""
    emissions = collection.emissions
    if not emissions:
        return module
    root = root_of(module)
    if root:
        emissions = [(below(root, path), rule, said, out) for path, rule, said, out in emissions]
    leaves, structure = flatten_module(module)
    after = merged(module, leaves, structure, emissions)
    return unflatten_module(structure, after, module._rng)


@real
@derived
def _buffers_in(structure: Structure) -> dict[str, dict[str, int]]:
    """By the path of a node and a name in it, the index of the unique leaf of each buffer."""
    found: dict[str, dict[str, int]] = {}
    for path, place, entry in structure.walk():
        if type(entry) is Structure:
            found[notes.joined(*path)] = {}
        elif entry is BUFFER:
            found[notes.joined(*path[:-1])][str(path[-1])] = structure.leaf_at[place]
    return found


def merged(
    module: Any, held: Sequence[Any], structure: Structure, emissions: Sequence[Emission]
) -> list[Any]:
    """The leaves with the emissions in their place.

    Args:
        module: what was collected, for the message of an error.
        held: its unique leaves.
        structure: its structure.
        emissions: by paths that begin at the module.
    """
    leaves = list(held)
    places = _buffers_in(structure)
    rules: dict[int, str | None] = {}
    several: dict[int, list[Tensor]] = {}
    for path, rule, buffers, relayed in emissions:
        own = places.get(path)
        if own is None or (rule is not None and rule not in (*RULES, IN_TURN)):
            raise _foreign(module, path, buffers, rule)
        for name, value in buffers.items():
            index = own.get(name)
            leaf = None if index is None else held[index]
            fits = (
                isinstance(leaf, Tensor)
                and isinstance(value, Tensor)
                and value.shape == leaf.shape
                and value.dtype is leaf.dtype
                and value.device == leaf.device
            )
            if index is None or not (fits or (relayed and _is_mapped(value, leaf))):
                raise _foreign(module, path, buffers, rule)
            if value.requires_grad or functorch.transform_active():  # vmap hides who requires grad
                value = value.detach()  # noqa: PLW2901  # no gradient flows through a buffer
            if index in rules and rule == IN_TURN and fits:
                several.pop(index, None)
                leaves[index] = value
            elif index in rules:  # also a tied buffer, met in two places
                _check_rules(notes.joined(path, name), rules[index], rule)
                several.setdefault(index, [leaves[index]]).append(value)
            elif fits:
                leaves[index] = value
            else:
                several[index] = [value]
            rules[index] = rule
    for index, values in several.items():
        leaves[index] = _one(values, rules[index], held[index].ndim)
    return leaves


def _is_mapped(value: Tensor, leaf: Any) -> bool:
    """Whether a value out of ``vmap`` is a stack of values for the buffer."""
    if not isinstance(leaf, Tensor):
        return False
    if value.dtype is not leaf.dtype or value.device != leaf.device:
        return False
    return value.ndim > leaf.ndim and value.shape[value.ndim - leaf.ndim :] == leaf.shape


def _foreign(module: Any, path: str, buffers: dict[str, Any], rule: str | None) -> EffectError:
    """The error for an emission from outside of the module; raises what else is wrong with it."""
    from parallax.tree.places import Survey, follow  # which stands on modules, and they on this

    emitter = Survey(module).at(path)
    if emitter is not None and emitter.is_module:
        check(follow(module, emitter.keys), path, buffers, rule)
    where = ", ".join([repr(notes.joined(path, name)) for name in buffers])
    return EffectError(
        f"an effect for {where}, and the {type(module).__name__} that is collected has no such "
        f"leaf. Collect around the module that emits"
    )


def _check_rules(where: str, one: str | None, two: str | None) -> None:
    if one is None or one != two:
        raise EffectError(
            f"two effects for {where!r}, with merge={one!r} and merge={two!r}. "
            f"Say how they become one, the same each time: self.emit(..., merge='mean'), or "
            f"'last', or 'sum'"
        )


def _one(values: list[Tensor], rule: str | None, ndim: int) -> Tensor:
    """The one value that several for a buffer become."""
    values = [_unmapped(value, rule, ndim) for value in values]
    if len(values) == 1 or rule == "last":
        return values[-1]
    return _reduced(torch.stack(values), rule)


def _unmapped(value: Tensor, rule: str | None, ndim: int) -> Tensor:
    """A value that came out of vmap, merged over what was mapped and the buffer is not."""
    while value.ndim > ndim:
        if rule is None or rule == IN_TURN:
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
            f"merge='mean': the mean of {values.dtype} values is not a {values.dtype}. Emit this "
            f"buffer in a call of its own, with merge='last' or merge='sum'"
        )
    return values.mean(0)
