"""Running the original's code on the leaves of a lifted module."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes, overrides
from parallax.bridge.buffers import Change
from parallax.bridge.skeleton import Skeleton, borrow, follow, put_back
from parallax.core.module import Module
from parallax.core.registry import flatten_module
from parallax.effects import collection, emitting
from parallax.effects.applying import below
from parallax.random import sources
from parallax.random.marks import consume
from parallax.random.seeds import state_of

__all__ = ["call", "read"]

_seeding = threading.RLock()


def call(module: Any, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the original, or a method of it, around the leaves of a lifted module.

    Args:
        module: the lifted module.
        method: the method's name; ``None`` is a call of the module itself, with its hooks.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        What the original returns; where that is a module of its own, the lifted one.
    """
    leaves, structure = flatten_module(module)
    skeleton = borrow(structure)
    skeleton.bind(module, leaves)
    source = module._rng
    if source is not None:
        if skeleton.buffers.slots:
            _go_on(module, skeleton)
        source = collection.source_of(source)
    function = skeleton.root if method is None else getattr(skeleton.root, method)
    if skeleton.fused and (functorch.transform_active() or modes.forward_level_active()):
        function = _in_steps(function)
    if source is None or modes.without_numbers():  # where nothing is drawn
        out = function(*args, **kwargs)
    else:
        with _seeded(module):
            out = function(*args, **kwargs)
    if method is not None:
        out = _translated(out, module, skeleton)
    del function
    changed = skeleton.buffers.changes() if skeleton.buffers.slots else None
    put_back(structure, skeleton)
    if changed:
        _emit(module, changed)
    return out


def _in_steps(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with overrides.attention_in_steps():
            return function(*args, **kwargs)

    return run


def read(module: Any, name: str) -> Any:
    """A property of the original."""
    leaves, structure = flatten_module(module)
    skeleton = borrow(structure)
    skeleton.bind(module, leaves)
    value = _translated(getattr(skeleton.root, name), module, skeleton)
    put_back(structure, skeleton)
    return value


def _go_on(module: Any, skeleton: Skeleton) -> None:
    """Puts what earlier calls in the collection emitted in the place of the buffers."""
    root = collection.root_of(module)
    for path, values in emitting.latest(module).items():
        skeleton.buffers.go_on(tuple(below(root, path).split(".")) if path != root else (), values)


def _translated(value: Any, module: Any, skeleton: Skeleton) -> Any:
    """The lifted module in place of a module of the skeleton."""
    path = skeleton.paths.get(id(value)) if isinstance(value, torch.nn.Module) else None
    return value if path is None else follow(module, path)


def _emit(module: Any, changed: list[Change]) -> None:
    by_owner: dict[tuple[tuple[str, ...], bool], dict[str, Tensor]] = {}
    for owner, name, value, later in changed:
        by_owner.setdefault((owner, later), {})[name] = value
    for (owner, later), values in by_owner.items():
        emit: Any = Module.emit  # buffers have any names
        emit(follow(module, owner), merge=emitting.IN_TURN if later else None, **values)


@contextmanager
def _seeded(module: Any) -> Iterator[None]:
    """The global generators, seeded from the module's rng for a while.

    They belong to the whole process, so one seeded call runs at a time.
    """
    key = collection.source_of(module._rng).key
    if key is not None and (functorch.is_mapped_within(key) or key.ndim):
        raise RuntimeError(
            f"{type(module).__name__}: a lifted nn.Module draws from torch's global generator, "
            f"which cannot be seeded with a key per example. Call it in eval mode, or replace its "
            f"stochastic layers: tree.select(model, bridge.lifted_type(nn.Dropout)).apply(...)"
        )
    rng = Module.rng.fget(module)  # type: ignore[attr-defined]  # a property
    seed = sources.seed_of(rng)
    generators = list(torch.cuda.default_generators) if torch.cuda.is_available() else []
    before = state_of(seed)
    with _seeding, torch.random.fork_rng([*range(len(generators))]):
        torch.set_rng_state(before)
        for generator in generators:
            generator.manual_seed(seed % 2**63)
        yield
        drawn = not torch.equal(torch.get_rng_state(), before)
        drawn = drawn or any([generator.get_offset() for generator in generators])
    if drawn:
        consume(sources.as_key(rng).data, f"{module._blueprint.cls.__name__} of torch")


dynamo.run_as_it_is(call)
dynamo.run_as_it_is(read)
