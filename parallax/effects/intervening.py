"""``intervene``: run a function with other values in the place of intermediate results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate

from torch import Tensor
from typing_extensions import ParamSpec, TypeVar

from parallax._errors.arguments import answered, check_function, shown
from parallax.core import notes
from parallax.effects.capturing import each_called, watched
from parallax.effects.collection import EffectError, root_of
from parallax.effects.running import rng_of
from parallax.effects.selecting import paths_of
from parallax.effects.watches import Change

__all__ = ["intervene"]

M = TypeVar("M", bound=Any, default=Any)
P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


@answered("effects.intervene", "effects.intervene(fn, {'blocks.0': lambda output: value})")
def intervene(
    fn: Callable[Concatenate[M, P], R], changes: Mapping[Any, Callable[[Any], Any]]
) -> Callable[Concatenate[M, P], R]:
    """A function that runs ``fn`` with other values in the place of some modules' outputs.

    For activation patching, ablations and steering. All that comes after sees the new value, a
    ``capture`` of the same module too, whichever is around the other.

    Args:
        fn: takes a module first, such as the ``forward`` of its class.
        changes: by a path, glob or class, as in ``effects.capture``, a function that takes the
            output of a module to what stands in its place: of the same structure. It is called at
            each call of each selected module, and traced and differentiated with the rest.

    Returns:
        A function of the same arguments and results.

    Raises:
        EffectError: if nothing that one key selects was called; or if a function returns another
            structure than it got, such as a tensor for a tuple.
        LookupError: if a key selects nothing; near misses are listed.
        TypeError: if ``fn`` or a value is not a function, ``changes`` no dict, or the first
            argument not a module.
        ValueError: if two keys select one module.

    Example:
        >>> import torch
        >>> from parallax import effects, nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).initialize(0)
        >>> ablated = effects.intervene(nn.Sequential.forward, {"layers.0": torch.zeros_like})
        >>> ablated(net, torch.ones(1, 2))
        tensor([[0., 0., 0.]])
    """
    check_function("effects.intervene", fn, "effects.intervene(fn, {'blocks.0': torch.zeros_like})")
    given: Any = changes
    if not isinstance(given, Mapping) or not given:
        raise TypeError(
            f"effects.intervene(changes=): expected a dict of functions by path, got "
            f"{shown(changes)}. Write {{'blocks.0': torch.zeros_like}}"
        )
    what, functions = tuple(changes), tuple(changes.values())
    for key, function in zip(what, functions, strict=True):
        if not callable(function):
            raise TypeError(
                f"effects.intervene: the value for {key!r} must be a function of the output, got "
                f"{shown(function)}. Write {{{key!r}: lambda output: value}}"
            )

    @wraps(fn)
    def intervened(module: M, /, *args: P.args, **kwargs: P.kwargs) -> R:
        rng_of(module, "intervene")
        paths = [paths_of(module, one, "effects.intervene") for one in what]
        by_path = _by_path(module, what, paths, functions)

        def change(path: str, count: int | None, out: Any) -> Any:
            changed = by_path[path](out)
            _check_structure(changed, out, path)
            return changed

        watch = Change(tuple(by_path), change)
        out, _ = watched(fn, module, watch, paths, args, kwargs)
        each_called(watch, module, what, paths, "effects.intervene")
        return out  # type: ignore[no-any-return]  # what fn returns

    return intervened


def _by_path(
    module: Any, what: tuple[Any, ...], paths: list[tuple[str, ...]], functions: tuple[Any, ...]
) -> dict[str, Any]:
    root = root_of(module)
    found: dict[str, Any] = {}
    told: dict[str, Any] = {}
    for key, selected, function in zip(what, paths, functions, strict=True):
        for path in selected:
            if path in told:
                raise ValueError(
                    f"effects.intervene: {told[path]!r} and {key!r} both select {path!r}. Write "
                    f"one function for it, or one intervention around the other"
                )
            told[path] = key
            found[notes.joined(root, path)] = function
    return found


def _check_structure(changed: Any, out: Any, path: str) -> None:
    from parallax.tree import core  # which stands on modules, and they on this

    if isinstance(changed, Tensor) and isinstance(out, Tensor):
        return
    same = core.opened(changed)[1] == core.opened(out)[1]
    if not same or isinstance(changed, Tensor) or isinstance(out, Tensor):
        raise EffectError(
            f"effects.intervene: the function for {path!r} got {shown(out)} and returned "
            f"{shown(changed)}, which has another structure. Return what is like the output"
        )
