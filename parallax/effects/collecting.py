"""``collect``: run a function of a module, and return the module with its effects."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate

from typing_extensions import ParamSpec, TypeVar

from parallax._errors.arguments import check_function
from parallax.effects.applying import applied
from parallax.effects.collection import Collecting, Collection
from parallax.effects.running import rng_of, run

__all__ = ["collect"]

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
        outer = rng_of(module, "collect")
        collection = Collection([], None)
        if type(outer) is Collecting:
            collection = Collection([], outer.collection.sown, watches=outer.collection.watches)
        out = run(fn, module, collection, args, kwargs)
        return out, applied(module, collection)

    return collected
