"""Calls of modules that compute with the plain tensors of each process.

Where a batch is cut and the leaves are whole, most modules compute each example by itself. Then a
process can take its own rows, compute with plain tensors, and call the result its part of the
whole. That costs what ``DistributedDataParallel`` costs; on distributed tensors torch works out
for each operator, each time, how its result is cut.

It must mean the same. So a module is asked about when it is first called with tensors that are cut
so: its code must do nothing but compute (``purity``), and the operators that this process would run
must be the same with both kinds of tensors (``rehearsed``): a mean over the batch, a draw, a number
that depends on the size of the batch are not. Otherwise it is called as it is, and the modules
within it are asked. Traces, transforms and modes see distributed tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import Shard
from torch.utils._pytree import tree_flatten, tree_unflatten

from parallax._compat import plain_parts, shards
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.distributed.purity import Globals, globals_of

__all__ = ["plainly"]

_SIMPLE = (int, float, bool, str, type(None), torch.dtype)
_LIMIT = 512  # of what is known; a step of a model asks for a few


class _Found(NamedTuple):
    """That a module can be called with plain tensors, and with what edges."""

    gradients: Sequence[Any]  # torch's description of those of all tensors that it is given
    specs: Sequence[Any]  # for each value of the result its description, or a list with the value


# By the ids of what each is for, which is held beside it and so keeps its id.
_known: dict[Any, tuple[Any, _Found | None]] = {}
_code: dict[int, tuple[Structure, Globals | None]] = {}


def plainly(
    call: Callable[..., Any], module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a call of a module returns, computed with plain tensors if that means the same.

    Args:
        call: what is called.
        module: its first argument.
        args: the others.
        kwargs: the others by name.
    """
    given = (*args, *kwargs.values())
    if not shards.any_distributed(given) or not plain_parts.are_simply_run():
        return call(module, *args, **kwargs)
    leaves, structure = flatten_module(module)
    if structure.watched or getattr(module._rng, "collection", None) is not None:
        return call(module, *args, **kwargs)  # somebody is told of tensors
    reads = _reads(structure)
    values = (*given, *leaves)
    if reads is None or not _are_known(given, leaves):
        return call(module, *args, **kwargs)
    places = [k for k, value in enumerate(values) if shards.is_distributed(value)]
    tensors: Any = [values[k] for k in places]

    def run(parts: Sequence[Tensor], rng: Any = None) -> Any:
        filled = list(values)
        for k, part in zip(places, parts, strict=True):
            filled[k] = part
        count = len(args)
        named = dict(zip(kwargs, filled[count : len(given)], strict=True))
        plain = unflatten_module(structure, filled[len(given) :], rng)
        return call(plain, *filled[:count], **named)

    # The leaves' descriptions stay from step to step; those of a batch are made anew.
    outer = tuple(
        [value._spec if shards.is_distributed(value) else (type(value), value) for value in given]
    )
    specs = [tensor._spec for tensor in tensors]
    stay = tuple([id(leaf._spec) for leaf in leaves if leaf is not None])
    mesh = specs[0].mesh  # another that is equal may be of other process groups
    here = id(structure), id(reads), tuple(kwargs), len(args), torch.is_grad_enabled(), id(mesh)
    key = (*here, outer, tuple(places), stay)
    if key not in _known:
        if len(_known) >= _LIMIT:
            _known.clear()
        parts = [shards.local_of(tensor) for tensor in tensors]
        _known[key] = (structure, reads, specs), _found(run, specs, parts)
    found = _known[key][1]
    if found is None:
        return call(module, *args, **kwargs)
    out = run(plain_parts.entering(tensors, found.gradients), module._rng)
    if isinstance(out, Tensor):
        return plain_parts.leaving([out], found.specs)[0]
    flat, result = tree_flatten(out)
    which = [k for k, one in enumerate(flat) if isinstance(one, Tensor)]
    wholes = plain_parts.leaving([flat[k] for k in which], [found.specs[k] for k in which])
    for k, whole in zip(which, wholes, strict=True):
        flat[k] = whole
    return tree_unflatten(flat, result)


def _reads(structure: Structure) -> Globals | None:
    """What the code of a module reads elsewhere; ``None`` if it cannot be told."""
    known = _code.get(id(structure))
    if known is None or not (known[1] is None or _is_as_read(known[1])):
        if len(_code) >= _LIMIT:
            _code.clear()
        known = _code[id(structure)] = structure, globals_of(structure)
    return known[1]


def _is_as_read(reads: Globals) -> bool:
    return all([get(name) is value for get, name, value in reads])


def _are_known(given: Sequence[Any], leaves: Sequence[Any]) -> bool:
    """Whether there are constants and distributed tensors alone, of which the leaves are whole."""
    kind = shards.is_distributed
    return all([kind(value) or type(value) in _SIMPLE for value in given]) and all(
        [
            leaf is None or (kind(leaf) and all([at.is_replicate() for at in leaf.placements]))
            for leaf in leaves
        ]
    )


def _found(
    run: Callable[[Sequence[Tensor]], Any], specs: Sequence[Any], parts: Sequence[Tensor]
) -> _Found | None:
    if any([spec.mesh != specs[0].mesh for spec in specs]):
        return None
    if not all([at.is_replicate() or type(at) is Shard for s in specs for at in s.placements]):
        return None
    results = plain_parts.rehearsed(run, specs, parts)
    return None if results is None else _Found(plain_parts.gradient_specs(specs), results)
