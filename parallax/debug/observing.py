"""A function is run, and every call of a module in it is looked at.

In eager code ``sys.setprofile`` sees each ``forward`` begin and return: no module is touched, it
works within transforms, and for modules that the function gets from elsewhere. While dynamo traces
there is no such thing. There the modules among the arguments are watched, as ``effects.capture``
does it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any, Protocol

import optree

from parallax._compat import dynamo
from parallax.core import notes
from parallax.core.module import Module
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.effects.capturing import watched
from parallax.effects.collection import root_of
from parallax.effects.selecting import paths_of
from parallax.effects.watches import Watch
from parallax.tree.outside import is_item

__all__ = ["Observer", "observed"]

Given = tuple[tuple[Any, ...], dict[str, Any]]


class Observer(Protocol):
    """What looks at calls of modules."""

    def begins(self, module: Any, forward: FunctionType, given: Given) -> None:
        """A ``forward`` is called; ``given`` are its arguments by position and by name."""
        ...

    def returns(self, module: Any, forward: FunctionType, given: Given, out: Any) -> None:
        """It has returned."""
        ...


def observed(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], by: Observer, what: str
) -> Any:
    """What a function returns, whose calls of modules are looked at.

    Args:
        fn: the function; a module, or a method of one, as well.
        args: its arguments by position.
        kwargs: its arguments by name.
        by: what looks.
        what: what is called, for error messages.
    """
    called: Any = fn
    if isinstance(called, MethodType) and is_module(called.__self__):
        called, args = called.__func__, (called.__self__, *args)
    elif is_module(called):
        called, args = _call, (called, *args)
    given: Any = (args, kwargs)
    items, spec = optree.tree_flatten(
        given, is_leaf=is_item, none_is_leaf=True, namespace=NAMESPACE
    )

    def run(found: Sequence[Any]) -> Any:
        args, kwargs = optree.tree_unflatten(spec, found)
        return called(*args, **kwargs)

    if dynamo.is_compiling():
        return _traced(run, list(items), by, what)
    with _Profile(by):
        return run([_addressed(item) for item in items])


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


# -- eager code -----------------------------------------------------------------------------


def _addressed(item: Any) -> Any:
    """A module that knows its paths; one that does already keeps them, and its rng."""
    if not is_module(item) or notes.note_of(item).path is not None:
        return item
    leaves, structure = flatten_module(item)
    return unflatten_module(notes.addressed(structure), leaves, item._rng)


class _Profile:
    """Has an observer see the calls of ``forward`` on this thread."""

    def __init__(self, by: Observer) -> None:
        self.by = by
        self.given: dict[int, tuple[Any, FunctionType, Given]] = {}

    def __enter__(self) -> None:
        self.before = sys.getprofile()
        sys.setprofile(self._see)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)

    def _see(self, frame: Any, event: str, result: Any) -> None:
        code = frame.f_code
        if code.co_name != "forward" or code.co_argcount == 0:
            return
        if event == "call":
            module = frame.f_locals.get(code.co_varnames[0])
            forward = _forward_of(module, code) if is_module(module) else None
            if forward is not None:
                given = _given(frame)
                self.given[id(frame)] = module, forward, given
                self.by.begins(module, forward, given)
        elif event == "return" and id(frame) in self.given:
            call = self.given.pop(id(frame))
            if dis.opname[code.co_code[frame.f_lasti]].startswith("RETURN"):  # and not by raising
                self.by.returns(*call, result)


def _forward_of(module: Any, code: Any) -> FunctionType | None:
    """The ``forward`` of a class of the module that has this code."""
    for cls in type(module).__mro__:
        forward = vars(cls).get("forward")
        if isinstance(forward, FunctionType) and forward.__code__ is code:
            return forward
    return None


def _given(frame: Any) -> Given:
    """The arguments that a call has just been given, but the module."""
    code, held = frame.f_code, frame.f_locals
    names, count = code.co_varnames, code.co_argcount
    last = count + code.co_kwonlyargcount
    args = tuple([held[name] for name in names[1:count]])
    kwargs = {name: held[name] for name in names[count:last]}
    if code.co_flags & _HAS_ARGS:
        args += held[names[last]]
        last += 1
    if code.co_flags & _HAS_KEYWORDS:
        kwargs |= held[names[last]]
    return args, kwargs


_HAS_ARGS, _HAS_KEYWORDS = 0x04, 0x08  # of code objects, as in the module inspect


# -- traces ---------------------------------------------------------------------------------


def _traced(run: Callable[..., Any], items: list[Any], by: Observer, what: str) -> Any:
    """The function with the modules among its arguments watched, one after the other."""
    place = next((k for k, item in enumerate(items) if is_module(item)), None)
    if place is None:
        return run(items)

    def from_here(module: Any) -> Any:
        def rest(others: Sequence[Any]) -> Any:
            return run([*items[:place], module, *others])

        return _traced(rest, items[place + 1 :], by, what)

    module = items[place]
    paths = paths_of(module, Module, what)
    root = root_of(module)
    watch = _Observing([notes.joined(root, path) for path in paths], by)
    return watched(from_here, module, watch, [paths], (), {})[0]


class _Observing(Watch):
    """Has an observer see the calls of modules."""

    surrounds = True

    def __init__(self, paths: Any, by: Observer) -> None:
        super().__init__(paths)
        self.by = by

    def around(self, path: str, call: Callable[..., Any], collection: Any) -> Callable[..., Any]:
        """What makes the call in place of ``call``."""

        def seen(module: Any, *args: Any, **kwargs: Any) -> Any:
            forward: Any = type(module).forward
            self.by.begins(module, forward, (args, kwargs))
            out = call(module, *args, **kwargs)
            self.by.returns(module, forward, (args, kwargs), out)
            return out

        return seen
