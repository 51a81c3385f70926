"""Effects: what a module would write into itself, recorded and returned instead.

Inside ``forward`` a module says ``self.emit(running_mean=...)``. ``collect`` runs a function of a
module and returns, beside its result, the module with everything that was emitted in its place:

    out, model = effects.collect(loss)(model, x)

A collection has no global state. It travels with the tree, where the rng travels too, so that it
is there in whatever instance a transform rebuilds, and another thread's is not. An emission is
addressed by the module's path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor

from parallax import _compat, notes, tracing
from parallax.fields import Buffer
from parallax.nodes import is_module
from parallax.registry import NAMESPACE, flatten_module, unflatten_module

__all__ = ["EffectError", "capture", "collect", "emit", "emitted", "nest", "relay", "root_of",
           "source_of", "sow", "with_source"]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")

_RULES = ("last", "mean", "sum")


class EffectError(RuntimeError):
    """An effect cannot be collected: nobody asked for it, or it contradicts another."""


class Emission(NamedTuple):
    """One value for one buffer, and the rule for the case that there are more."""

    value: Tensor
    merge: str | None


class Collection:
    """What is being collected for one call.

    Attributes:
        emissions: by path; ``None`` when emissions are not collected.
        sown: by path; ``None`` when intermediates are not captured.
        level: how many transforms ran when it began; deeper wrappers must not get in.
        backward: whether it began within autograd's backward.
        over: whether the call has returned.
    """

    __slots__ = ("backward", "emissions", "level", "over", "sown")

    def __init__(
        self,
        emissions: dict[str, list[Emission]] | None,
        sown: dict[str, list[Tensor]] | None,
    ) -> None:
        self.emissions = emissions
        self.sown = sown
        self.over = False
        self.level = 0
        self.backward = False
        if not _compat.is_compiling():
            self.level = _compat.current_level()
            self.backward = _compat.in_backward()

    def recomputes(self) -> bool:
        """Whether this is a recomputation in backward, whose effects were collected before."""
        return not _compat.is_compiling() and not self.backward and _compat.in_backward()


class Collecting:
    """What a tree under collection holds as rng: the collection, and the rng proper."""

    __slots__ = ("collection", "source")

    def __init__(self, collection: Collection, source: Any) -> None:
        self.collection = collection
        self.source = source

    @property
    def key(self) -> Any:
        """The leaf of the rng, if it is a key."""
        return None if self.source is None else self.source.key

    def with_key(self, key: Any) -> Collecting:
        """The same collection, with the rng around another leaf."""
        return Collecting(self.collection, self.source.with_key(key))


def source_of(rng: Any) -> Any:
    """The rng proper of what a tree holds as rng."""
    return rng.source if type(rng) is Collecting else rng


def with_source(rng: Any, source: Any) -> Any:
    """What a tree holds that is given another rng: a collection goes on."""
    return Collecting(rng.collection, source) if type(rng) is Collecting else source


# -- what forward says ----------------------------------------------------------------------


def emit(module: Any, buffers: dict[str, Any], merge: str | None) -> None:
    """What ``Module.emit`` does; see there."""
    cls = type(module).__name__
    if merge is not None and merge not in _RULES:
        raise ValueError(f"{cls}.emit(merge=): expected one of {_RULES} or None, got {merge!r}")
    for name, value in buffers.items():
        _check(module, name, value)
    rng = module._rng
    collection = rng.collection if type(rng) is Collecting else None
    if collection is None or collection.emissions is None:
        raise EffectError(
            f"{cls}.emit({', '.join(buffers)}): nobody collects the effects of this call. Write: "
            f"out, module = effects.collect(fn)(module, ...); or switch them off: module.eval()"
        )
    if collection.recomputes():
        return
    if collection.over:
        raise EffectError(
            f"{cls}.emit({', '.join(buffers)}): the call that collected is over; this instance "
            f"was kept from inside it. Use the module that collect() returned"
        )
    path = notes.note_of(module).path or ""
    for name, value in buffers.items():
        where = notes.joined(path, name)
        _refuse_wrapper(value, collection, f"{cls}.emit({name}=)")
        _add(collection.emissions, where, Emission(value.detach(), merge))


def _check(module: Any, name: str, value: Any) -> None:
    cls = type(module)
    where = f"{cls.__name__}.emit({name}=)"
    if name not in cls.__layout__.fields:
        raise AttributeError(
            f"{where}: {cls.__name__} declares no field {name!r}. Declare it: '{name}: Buffer'"
        )
    kind = cls.__layout__.kinds.get(name)
    if kind is None or kind.leaf is not Buffer:
        raise TypeError(f"{where}: only buffers are emitted. Declare it: '{name}: Buffer'")
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
    held = getattr(module, name)
    if not isinstance(held, Tensor):
        what = "None" if held is None else "not initialized"
        raise TypeError(f"{where}: the buffer is {what}, so there is nothing to replace")
    if value.shape != held.shape or value.dtype != held.dtype:
        raise ValueError(
            f"{where}: the buffer has shape {tuple(held.shape)} and {held.dtype}, the value "
            f"{tuple(value.shape)} and {value.dtype}. Reduce it, or cast: value.to({held.dtype})"
        )


def _refuse_wrapper(value: Tensor, collection: Collection, where: str) -> None:
    if not _compat.is_compiling() and _compat.level_of(value) > collection.level:
        raise EffectError(
            f"{where}: a transform of torch.func would let its wrapper escape here. Use the "
            f"transform of the same name in parallax.func, which hands effects on; or collect "
            f"inside: torch.vmap(effects.collect(fn))"
        )


def _add(emissions: dict[str, list[Emission]], where: str, new: Emission) -> None:
    found = emissions.get(where)
    if found is None:
        emissions[where] = [new]
        return
    if new.merge is None or new.merge != found[0].merge:
        raise EffectError(
            f"two effects for {where!r}, with merge={found[0].merge!r} and merge={new.merge!r}. "
            f"Say how they become one: self.emit({where.split('.')[-1]}=..., merge='mean'), or "
            f"'last', or 'sum', the same each time"
        )
    found.append(new)


def sow(module: Any, values: dict[str, Any]) -> None:
    """What ``Module.sow`` does; see there."""
    rng = module._rng
    if type(rng) is not Collecting or rng.collection.sown is None:
        return
    collection = rng.collection
    if collection.over or collection.recomputes():
        return
    path = notes.note_of(module).path or ""
    for name, value in values.items():
        where = f"{type(module).__name__}.sow({name}=)"
        if not isinstance(value, Tensor):
            raise TypeError(f"{where}: expected a tensor, got {type(value).__name__}")
        _refuse_wrapper(value, collection, where)
        collection.sown.setdefault(notes.joined(path, name), []).append(value)


# -- collecting -----------------------------------------------------------------------------


def collect(fn: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], tuple[R, M]]:
    """Runs a function of a module, and returns the module with its effects applied, too.

    Args:
        fn: takes a module first; a module itself will do.

    Returns:
        A function of the same arguments that returns ``fn``'s result and the module in which
        every buffer holds what was emitted for it. The module that is given stays as it is.

    Raises:
        EffectError: if two effects for one buffer have no rule, or an effect comes from a place
            the module does not have. Then nothing is applied.
        TypeError: if the first argument is no module, or ``fn`` returns a coroutine or a
            generator, which would run after the collection.

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

    @wraps(fn)
    def collected(module: M, *args: P.args, **kwargs: P.kwargs) -> tuple[R, M]:
        outer = _rng_of(module, "collect")
        captured = outer.collection.sown if type(outer) is Collecting else None
        collection = Collection({}, captured)
        out = _run(fn, module, collection, args, kwargs)
        return out, _apply(module, collection)

    return collected


def capture(
    fn: Callable[Concatenate[M, P], R],
) -> Callable[Concatenate[M, P], tuple[R, dict[str, Tensor | tuple[Tensor, ...]]]]:
    """Runs a function of a module, and returns what its modules sowed, too.

    Args:
        fn: takes a module first; a module itself will do.

    Returns:
        A function of the same arguments that returns ``fn``'s result and the intermediates by
        dotted path and name, as part of the graph; a tuple of them where a name was sown
        several times.

    Raises:
        TypeError: if the first argument is no module, or ``fn`` returns a coroutine or a
            generator, which would run after the collection.

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

    @wraps(fn)
    def captured(module: M, *args: P.args, **kwargs: P.kwargs) -> Any:
        outer = _rng_of(module, "capture")
        emissions = outer.collection.emissions if type(outer) is Collecting else None
        collection = Collection(emissions, {})
        out = _run(fn, module, collection, args, kwargs)
        root = root_of(module)
        sown = collection.sown or {}
        found = {
            _below(root, path): values[0] if len(values) == 1 else tuple(values)
            for path, values in sown.items()
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
    if not _compat.is_compiling():
        _refuse_deferred(out)
    return _freed(out, collection, outer)


def _under(module: Any, inner: Collecting) -> Any:
    """The module holding ``inner``, every module in it with its path."""
    if _compat.is_compiling():
        root = root_of(module)
        return notes.traced(module, lambda path, n: n._replace(path=notes.joined(root, path)), inner)
    leaves, structure = flatten_module(module)
    return unflatten_module(notes.addressed(structure, root_of(module)), leaves, inner)


def root_of(module: Any) -> str:
    """Where a module's paths begin: within a collection it keeps the ones it has."""
    return (notes.note_of(module).path or "") if type(module._rng) is Collecting else ""


def _below(root: str, path: str) -> str:
    return path[len(root) + 1 :] if root else path


def _refuse_deferred(out: Any) -> None:
    if inspect.iscoroutine(out) or inspect.isgenerator(out) or inspect.isasyncgen(out):
        if not inspect.isasyncgen(out):
            out.close()
        raise TypeError(
            f"effects: the function returned a {type(out).__name__}, which runs after the "
            f"collection is over. Collect inside it, around the calls themselves"
        )


def _freed(out: Any, collection: Collection, outer: Any) -> Any:
    """``out`` with every module in it out of the collection."""
    items, spec = optree.tree_flatten(
        out, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    if not any([is_module(item) and _holds(item, collection) for item in items]):
        return out
    freed = [
        _rebuilt(item, with_source(outer, source_of(item._rng)))
        if is_module(item) and _holds(item, collection)
        else item
        for item in items
    ]
    return optree.tree_unflatten(spec, freed)


def _holds(module: Any, collection: Collection) -> bool:
    return type(module._rng) is Collecting and module._rng.collection is collection


def _rebuilt(module: Any, rng: Any) -> Any:
    if _compat.is_compiling():
        leaves, outline = tracing.take_apart(module)
        return tracing.rebuild(outline, leaves, rng)
    leaves, structure = flatten_module(module)
    return unflatten_module(structure, leaves, rng)


def _apply(module: Any, collection: Collection) -> Any:
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
    places = structure.variants.get("places")
    if places is None:
        expand = structure.expand or range(len(structure.place_paths))
        places = structure.variants["places"] = dict(
            zip(structure.place_paths, expand, strict=True)
        )
    return unflatten_module(structure, _merged(held, places, collection, root), module._rng)


def _merged(held: Any, places: dict[str, int], collection: Collection, root: str) -> list[Any]:
    leaves = list(held)
    changed: dict[int, list[Emission]] = {}
    for path, emissions in (collection.emissions or {}).items():
        index = places.get(_below(root, path))
        if index is None:
            raise EffectError(
                f"an effect for {path!r}, and the module that is collected has no such leaf. "
                f"Collect around the module that emits"
            )
        for emission in emissions:
            if index in changed:
                if len(emissions) == 1:  # a tied buffer, met in two places
                    _add({path: changed[index]}, path, emission)
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


# -- for transforms -------------------------------------------------------------------------


def nest(rng: Any) -> Any:
    """What a module holds within a transform: a collection of its own where one is under way.

    A transform whose tensors are wrappers (``vmap``, ``torch.func.grad``) calls its function with
    modules that hold ``inner = nest(module._rng)``, returns ``emitted(inner)`` beside the
    function's result, and outside calls ``relay(module._rng, inner, values)``.

    Args:
        rng: what the module holds outside.

    Returns:
        What it holds inside; ``rng`` itself when nothing is collected.
    """
    if type(rng) is not Collecting:
        return rng
    outer = rng.collection
    emissions: Any = None if outer.emissions is None else {}
    return Collecting(Collection(emissions, None if outer.sown is None else {}), rng.source)


def emitted(inner: Any) -> list[Tensor]:
    """All that a nested collection holds, to be returned from the transform."""
    if type(inner) is not Collecting:
        return []
    collection = inner.collection
    values = [e.value for entries in (collection.emissions or {}).values() for e in entries]
    return values + [value for sown in (collection.sown or {}).values() for value in sown]


def relay(rng: Any, inner: Any, values: list[Tensor]) -> None:
    """Records what came out of a transform where the transform was called.

    Args:
        rng: what the module holds outside.
        inner: what it held inside.
        values: ``emitted(inner)`` as the transform returned it; a mapped dimension comes first,
            and is merged by the rule of the emission where the buffer is not mapped.

    Raises:
        EffectError: if two effects for one buffer have no rule.
    """
    if type(inner) is not Collecting:
        return
    outer, collection, given = rng.collection, inner.collection, iter(values)
    collection.over = True
    for path, entries in (collection.emissions or {}).items():
        for entry in entries:
            _add(outer.emissions, path, Emission(next(given), entry.merge))
    for path, entries in (collection.sown or {}).items():
        outer.sown.setdefault(path, []).extend([next(given) for _ in entries])
