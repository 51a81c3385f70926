"""``capture``: run a function of a module, and return what happened inside, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Literal, overload

from torch import Tensor
from typing_extensions import ParamSpec, TypeVar

from parallax._errors.arguments import answered, check_flags, check_function
from parallax.core import notes
from parallax.effects.applying import below
from parallax.effects.collection import Collecting, Collection, EffectError, root_of
from parallax.effects.running import freed, rng_of, run
from parallax.effects.selecting import paths_of
from parallax.effects.watches import Record, Watch

__all__ = ["capture", "each_called", "watched"]

M = TypeVar("M", bound=Any, default=Any)
P = ParamSpec("P", default=...)
R = TypeVar("R", default=Any)


@overload
def capture(
    fn: Callable[Concatenate[M, P], R], /, *, inputs: Literal[False] = False
) -> Callable[Concatenate[M, P], tuple[R, dict[str, Tensor | tuple[Tensor, ...]]]]: ...


@overload
def capture(
    fn: Callable[Concatenate[M, P], R], /, *what: str | type, inputs: bool = False
) -> Callable[Concatenate[M, P], tuple[R, dict[str, Any]]]: ...


@answered("effects.capture", "effects.capture(fn, 'blocks.*', inputs=False)(model, x)")
def capture(
    fn: Callable[Concatenate[M, P], R], /, *what: str | type, inputs: bool = False
) -> Callable[Concatenate[M, P], tuple[R, dict[str, Any]]]:
    """A function that runs ``fn`` and also returns what its modules computed or sowed.

    Nothing is added to the modules that are not selected, nor to calls outside of the capture.

    Args:
        fn: takes a module first, such as the ``forward`` of its class.
        *what: which modules' outputs are returned, each a dotted path, a glob over the segments of
            paths (``"encoder.layers.*.attention"``; ``**`` is any number of segments), or a class;
            what is no path may be a name in the state dict, ``"0"`` of a ``Sequential``.
            A module that stands in several places is selected in each for itself; a lifted one
            gets the calls of all. Without any, what the modules sowed is returned.
        inputs: whether to return an ``effects.Call``, with ``args``, ``kwargs`` and ``output``,
            in place of each output.

    Returns:
        A function of the same arguments that returns ``fn``'s result and a dict, as part of the
        graph. By the path of each selected module, in the order in which they returned first: its
        output; a tuple of its outputs if it was called several times; ``None`` if it was never
        called. Or, by dotted path and name, what was sown; a tuple where a name was sown several
        times.

    Raises:
        EffectError: if nothing that one of ``what`` selects was called.
        LookupError: if one of ``what`` selects nothing; near misses are listed.
        TypeError: if ``fn`` is not a function or its first argument not a module, if one of
            ``what`` is neither text nor a class, or if ``fn`` returns a coroutine or a generator,
            which would run after the collection.

    Example:
        >>> import torch
        >>> from parallax import Module, effects, nn
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).initialize(0)
        >>> out, found = effects.capture(nn.Sequential.forward, "**")(net, torch.ones(4, 2))
        >>> list(found), found["layers.1"].shape
        (['layers.0', 'layers.1', 'layers.2'], torch.Size([4, 3]))
        >>> class Square(Module):
        ...     def forward(self, x):
        ...         self.sow(input=x)
        ...         return x * x
        >>> effects.capture(Square.forward)(Square(), torch.tensor(3.0))
        (tensor(9.), {'input': tensor(3.)})
    """
    check_function("effects.capture", fn, "effects.capture(Net.forward, 'blocks.*')(net, x)")
    check_flags("effects.capture", inputs=inputs)
    if inputs and not what:
        raise TypeError(
            "effects.capture(inputs=): say which modules' inputs, for example "
            "effects.capture(fn, 'blocks.*', inputs=True)"
        )

    @wraps(fn)
    def captured(module: M, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        if not what:
            return _sown(fn, module, args, kwargs)
        rng_of(module, "capture")
        paths = [paths_of(module, one, "effects.capture") for one in what]
        record = Record(_absolute(module, paths), inputs)
        out, collection = watched(fn, module, record, paths, args, kwargs)
        if len(record.calls) < len(record.paths):
            each_called(record, module, what, paths, "effects.capture")
        root = root_of(module)
        found = {below(root, path): _one(records) for path, records in record.calls.items()}
        for path in record.paths:
            found.setdefault(below(root, path), None)
        if not all([isinstance(value, Tensor) for value in found.values()]):
            found = freed(found, collection, module._rng)
        return out, found

    return captured


def _sown(fn: Callable[..., Any], module: Any, args: Any, kwargs: Any) -> Any:
    """Runs ``fn``; what it returns, and what was sown."""
    outer = rng_of(module, "capture")
    collection = Collection(None, {})
    if type(outer) is Collecting:
        collection = Collection(outer.collection.emissions, {}, watches=outer.collection.watches)
    out = run(fn, module, collection, args, kwargs)
    root = root_of(module)
    sown = collection.sown or {}
    return out, {
        notes.joined(below(root, path), name): _one(values) for (path, name), values in sown.items()
    }


def _one(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else tuple(values)


def _absolute(module: Any, paths: list[tuple[str, ...]]) -> list[str]:
    """Paths below a module as the collection has them."""
    root = root_of(module)
    flat = [path for found in paths for path in found]
    return [notes.joined(root, path) for path in flat] if root else flat


def watched(
    fn: Callable[..., Any],
    module: Any,
    watch: Watch,
    paths: list[tuple[str, ...]],
    args: Any,
    kwargs: Any,
) -> tuple[Any, Collection]:
    """Runs ``fn`` with the modules at ``paths`` watched; its result, and what was collected."""
    outer = module._rng
    collection = Collection(None, None, watches=(watch,))
    if type(outer) is Collecting:
        around = outer.collection
        collection = Collection(around.emissions, around.sown, watches=(*around.watches, watch))
    marked = tuple(dict.fromkeys([path for found in paths for path in found]))
    return run(fn, module, collection, args, kwargs, marked), collection


def each_called(
    watch: Watch, module: Any, what: tuple[Any, ...], paths: list[tuple[str, ...]], by: str
) -> None:
    """Raises an ``EffectError`` unless each condition selects a module that was called."""
    root = root_of(module)
    for one, found in zip(what, paths, strict=True):
        if not any([notes.joined(root, path) in watch.calls for path in found]):
            name = repr(one) if isinstance(one, str) else one.__name__
            listed = f" ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            raise EffectError(
                f"{by}: {name} selects {len(found)} module{'s' * (len(found) != 1)} of "
                f"{type(module).__name__}{listed * (found != (one,))}, and none was called. "
                f"Select what calls it, or a module that the function calls"
            )
