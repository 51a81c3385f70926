"""Running a function with its module under collection, and freeing of it what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optree
from torch import Tensor

from parallax._compat import dynamo
from parallax.core import notes
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.effects.collection import Collecting, Collection, root_of, source_of, with_source
from parallax.effects.watching import unwatch, watch

__all__ = ["freed", "refuse_deferred", "rng_of", "run"]


def rng_of(module: Any, by: str) -> Any:
    """What the first argument of a function that is run holds as rng.

    Raises:
        TypeError: if it is no module.
    """
    if not is_module(module):
        raise TypeError(
            f"effects.{by}(fn) runs functions whose first argument is a module, got "
            f"{type(module).__name__}. Write: effects.{by}(lambda module, x: ...)(module, x)"
        )
    return module._rng


def run(
    fn: Callable[..., Any],
    module: Any,
    collection: Collection,
    args: Any,
    kwargs: Any,
    watched: tuple[str, ...] = (),
) -> Any:
    """Calls ``fn`` with the module under collection, and frees what it returns of it.

    The modules at ``watched``, from this one, are watched.
    """
    outer = module._rng
    try:
        # Errors search the variables of this function for the path of a layer: the module under
        # collection is none of them.
        out = fn(_under(module, collection, watched), *args, **kwargs)
    finally:
        collection.over = True
    if isinstance(out, Tensor):
        return out
    if not dynamo.is_compiling():
        refuse_deferred(out, "effects")
    return freed(out, collection, outer)


def _under(module: Any, collection: Collection, watched: tuple[str, ...]) -> Any:
    """The module under collection, every module in it with its path."""
    leaves, structure = flatten_module(module)
    structure = notes.addressed(structure, root_of(module))
    if watched:
        structure = watch(structure, watched)
    return unflatten_module(structure, leaves, Collecting(collection, source_of(module._rng)))


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


def freed(out: Any, collection: Collection, outer: Any) -> Any:
    """``out`` with every module in it out of the collection, and watched no more than outside."""
    items, spec = optree.tree_flatten(
        out, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    watched = type(outer) is Collecting and bool(outer.collection.watches)
    over = bool(collection.watches) and not watched
    if not any([_holds(item, collection) or (over and is_module(item)) for item in items]):
        return out
    return optree.tree_unflatten(spec, [_freed(item, collection, outer, over) for item in items])


def _freed(item: Any, collection: Collection, outer: Any, over: bool) -> Any:
    if not is_module(item):
        return item
    leaves, structure = flatten_module(item)
    rng = item._rng
    if _holds(item, collection):
        rng = with_source(outer, source_of(rng))
    elif not (over and structure.watched):
        return item
    return unflatten_module(unwatch(structure) if over else structure, leaves, rng)


def _holds(item: Any, collection: Collection) -> bool:
    rng = item._rng if is_module(item) else None
    return type(rng) is Collecting and rng.collection is collection
