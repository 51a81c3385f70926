"""``collect`` and ``capture``: run a function of a module, and return its effects, too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

import optree
from torch import Tensor
from typing_extensions import ParamSpec, TypeVar

from parallax._compat import dynamo
from parallax.core import notes
from parallax.core.arguments import check_function
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.effects.applying import applied, below
from parallax.effects.collection import Collecting, Collection, root_of, source_of, with_source

__all__ = ["capture", "collect", "refuse_deferred"]

# With Any as default, a lambda's arguments may be called and read whatever they are.
M = TypeVar("M", bound=Any, default=Any)
P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


def collect(fn: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], tuple[R, M]]:
    """A function that runs ``fn`` and also returns the module with its effects applied.

    Args:
        fn: takes a module first, such as the ``forward`` of its class.

    Returns:
        A function of the same arguments that returns ``fn``'s result and the module in which
        every buffer holds what was emitted for it. The module that is given stays as it is.

    Raises:
        EffectError: if two effects for one buffer have no rule, or an effect comes from a place
            the module does not have. Then nothing is applied.
        TypeError: if ``fn`` is not a function or its first argument not a module, or if it returns
            a coroutine or a generator, which would run after the collection.

    Example:
        >>> import torch
        >>> from parallax import Buffer, Module, effects
        >>> class Counter(Module):
        ...     calls: Buffer
        ...     def forward(self, x):
        ...         self.emit(calls=self.calls + 1)
        ...         return x
        >>> counter = Counter(torch.tensor(0))
        >>> x, counter = effects.collect(Counter.forward)(counter, 1.0)
        >>> counter.calls
        tensor(1)
    """
    check_function("effects.collect", fn, "effects.collect(Net.forward)(net, x)")

    @wraps(fn)
    def collected(module: M, /, *args: P.args, **kwargs: P.kwargs) -> tuple[R, M]:
        outer = _rng_of(module, "collect")
        captured = outer.collection.sown if type(outer) is Collecting else None
        collection = Collection([], captured)
        out = _run(fn, module, collection, args, kwargs)
        return out, applied(module, collection)

    return collected


def capture(
    fn: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, P], tuple[R, dict[str, Tensor | tuple[Tensor, ...]]]]:
    """A function that runs ``fn`` and also returns what its modules sowed.

    Args:
        fn: takes a module first, such as the ``forward`` of its class.

    Returns:
        A function of the same arguments that returns ``fn``'s result and the intermediates by
        dotted path and name, as part of the graph; a tuple of them where a name was sown
        several times.

    Raises:
        TypeError: if ``fn`` is not a function or its first argument not a module, or if it returns
            a coroutine or a generator, which would run after the collection.

    Example:
        >>> import torch
        >>> from parallax import Module, effects
        >>> class Square(Module):
        ...     def forward(self, x):
        ...         self.sow(input=x)
        ...         return x * x
        >>> effects.capture(Square.forward)(Square(), torch.tensor(3.0))
        (tensor(9.), {'input': tensor(3.)})
    """
    check_function("effects.capture", fn, "effects.capture(Net.forward)(net, x)")

    @wraps(fn)
    def captured(module: M, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        outer = _rng_of(module, "capture")
        emissions = outer.collection.emissions if type(outer) is Collecting else None
        collection = Collection(emissions, {})
        out = _run(fn, module, collection, args, kwargs)
        root = root_of(module)
        sown = collection.sown or {}
        found = {
            notes.joined(below(root, path), name): values[0] if len(values) == 1 else tuple(values)
            for (path, name), values in sown.items()
        }
        return out, found

    return captured


def _rng_of(module: Any, by: str) -> Any:
    if not is_module(module):
        raise TypeError(
            f"effects.{by}(fn) runs functions whose first argument is a module, got "
            f"{type(module).__name__}. Write: effects.{by}(lambda module, x: ...)(module, x)"
        )
    return module._rng


def _run(
    fn: Callable[..., Any], module: Any, collection: Collection, args: Any, kwargs: Any
) -> Any:
    """Calls ``fn`` with the module under collection, and frees what it returns of it."""
    outer = module._rng
    inner = Collecting(collection, source_of(outer))
    try:
        out = fn(_under(module, inner), *args, **kwargs)
    finally:
        collection.over = True
    if isinstance(out, Tensor):
        return out
    if not dynamo.is_compiling():
        refuse_deferred(out, "effects")
    return _freed(out, collection, outer)


def _under(module: Any, inner: Collecting) -> Any:
    """The module holding ``inner``, every module in it with its path."""
    leaves, structure = flatten_module(module)
    return unflatten_module(notes.addressed(structure, root_of(module)), leaves, inner)


def refuse_deferred(out: Any, by: str) -> None:
    """Refuses what a function returned if that has not run yet.

    Raises:
        TypeError: if it is a coroutine or a generator.
    """
    if inspect.iscoroutine(out) or inspect.isgenerator(out) or inspect.isasyncgen(out):
        if not inspect.isasyncgen(out):
            out.close()
        raise TypeError(
            f"{by}: the function returned a {type(out).__name__}, which runs when the call is "
            f"over. Use {by} inside it, around the calls themselves"
        )


def _freed(out: Any, collection: Collection, outer: Any) -> Any:
    """``out`` with every module in it out of the collection."""
    items, spec = optree.tree_flatten(
        out, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    if not any(_holds(item, collection) for item in items):
        return out
    freed = [
        _rebuilt(item, with_source(outer, source_of(item._rng)))
        if _holds(item, collection)
        else item
        for item in items
    ]
    return optree.tree_unflatten(spec, freed)


def _holds(item: Any, collection: Collection) -> bool:
    rng = item._rng if is_module(item) else None
    return type(rng) is Collecting and rng.collection is collection


def _rebuilt(module: Any, rng: Any) -> Any:
    leaves, structure = flatten_module(module)
    return unflatten_module(structure, leaves, rng)
