"""One step on autograd's tape: fresh leaves before ``backward``, and what it stored on them."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch import Tensor

from parallax._compat import sharding_rules
from parallax._compat.collectives import gradients_placed
from parallax._errors.arguments import shown
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.effects import collection
from parallax.random import Rng, sources
from parallax.tree.modes import with_mode

__all__ = ["grad", "reset"]

T = TypeVar("T")


def reset(module: T, rng: Rng, mode: str) -> T:
    """The module with fresh leaves, an rng and a mode: ``Module.reset``."""
    if mode not in ("train", "eval"):
        raise ValueError(
            f"reset(mode=): mode must be 'train' or 'eval', got {shown(mode)}. "
            f"Write module.reset(rng, 'train')"
        )
    leaves, structure = flatten_module(module)
    _require_values(leaves, structure)
    sharding_rules.complete()
    held: Any = module._rng  # type: ignore[attr-defined]  # a module
    structure = with_mode(structure, collection.root_of(module), mode)
    source = sources.source_of(rng)
    sources.warn_if_same(source, collection.source_of(held))
    fresh = [
        leaf if leaf is None
        else leaf.detach().requires_grad_() if train and _differentiable(leaf)
        else leaf.detach()
        for leaf, train in zip(leaves, structure.trainable, strict=True)
    ]  # fmt: skip
    return cast(T, unflatten_module(structure, fresh, collection.with_source(held, source)))


def _differentiable(leaf: Tensor) -> bool:
    return leaf.is_floating_point() or leaf.is_complex()


def _require_values(leaves: tuple[Any, ...], structure: Structure) -> None:
    for leaf, path in zip(leaves, structure.paths, strict=True):
        if isinstance(leaf, Lazy):
            raise UninitializedError(
                f"{structure.cls.__name__}.{path} is not initialized, so reset() has nothing to "
                f"work on. Initialize first: module = module.initialize(rng)"
            )


def grad(module: T) -> T:
    """The module of what ``backward`` stored on its leaves: ``Module.grad``."""
    leaves, structure = flatten_module(module)
    grads = [leaf.grad if isinstance(leaf, Tensor) and leaf.is_leaf else None for leaf in leaves]
    if all(grad is None for grad in grads):
        raise RuntimeError(
            f"{type(module).__name__} has no gradients. Prepare the leaves, run backward on what "
            f"this very module computed, then ask: "
            f"module = module.reset(rng); module(x).sum().backward(); module.grad()"
        )
    return cast(T, unflatten_module(structure, gradients_placed(grads, leaves)))
