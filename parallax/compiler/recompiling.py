"""Which graph a call of a compiled function gets, and when another one is made."""

from __future__ import annotations

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from parallax._compat.artifacts import BACKENDS, Keeper
from parallax._compat.dynamo import is_compiling, recompile_limit
from parallax._compat.modes import is_transforming
from parallax.compiler.donation import Donation
from parallax.compiler.graph import Graph
from parallax.compiler.lowering import Lowered
from parallax.compiler.packing import pack_call, paths_of, positions_in_modules
from parallax.compiler.progress import told
from parallax.compiler.reasons import family_of, reason
from parallax.core.fields import Lazy, UninitializedError

__all__ = ["FUNCTIONS", "CompiledFunction", "Made"]

FUNCTIONS: WeakKeyDictionary[Callable[..., Any], CompiledFunction] = WeakKeyDictionary()
"""What is behind the functions that ``compile`` has returned."""

_making = threading.RLock()  # one for all functions: two that call each other cannot deadlock


class Made(NamedTuple):
    """A graph that was made, by the name that dynamo knows it by, and why."""

    name: str
    why: str


class CompiledFunction:
    """The graphs of one function."""

    def __init__(
        self, fn: Callable[..., Any], settings: dict[str, Any], donation: Donation | None
    ) -> None:
        if donation is not None and not settings["fullgraph"]:
            raise ValueError(
                f"compile: what {donation.name} is given can be donated only where all of it is "
                f"one graph. Leave fullgraph=False out, or donate"
            )
        self.fn = fn
        self.donation = donation
        self.settings = settings
        self.limit = settings.get("recompile_limit")
        self.graphs: dict[Any, list[Graph]] = {}
        self.families: dict[Any, list[Graph]] = {}
        self.made: list[Made] = []

    def wrapper(self) -> Callable[..., Any]:
        """The function that users call: a plain one, which binds as a method does."""
        fn, find, make, donation = self.fn, self._find, self._make, self.donation
        refusal = None if donation is None else donation.refusal
        last: Graph | None = None

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal last
            graph = last
            if graph is not None:
                opened: Sequence[Any] | None = graph.open(args, kwargs)
                if opened is not None and graph.classes.unchanged():
                    if graph.given is not None:
                        opened = graph.given.secured(opened)
                    if graph.fits(opened):
                        return graph(opened, args, kwargs)
            items, tokens = pack_call(args, kwargs)
            if donation is not None:
                items = donation.secured(tokens, items, args, kwargs)
            graph = find(tokens, items)
            if graph is None:
                return make(tokens, items, args, kwargs)
            last = graph
            return graph(items, args, kwargs)

        # Dynamo looks at all that a function closes over, hence one function in another.
        @functools.wraps(fn)
        def compiled(*args: Any, **kwargs: Any) -> Any:
            if is_compiling() or is_transforming():
                if refusal is not None:
                    raise ValueError(refusal)
                return fn(*args, **kwargs)
            return call(args, kwargs)

        def lower(*args: Any, **kwargs: Any) -> Lowered:
            return self._lower(args, kwargs)

        compiled.lower = lower  # type: ignore[attr-defined]  # declared by Compiled
        FUNCTIONS[compiled] = self
        return compiled

    def _find(self, tokens: tuple[Any, ...], items: list[Any]) -> Graph | None:
        for graph in self.graphs.get(tokens, ()):
            if graph.classes.unchanged() and graph.fits(items):
                return graph
        return None

    def _make(
        self,
        tokens: tuple[Any, ...],
        items: list[Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Makes a graph and runs it; it is kept if that succeeds."""
        with _making:
            found = self._find(tokens, items)  # another thread may have made it
            if found is not None:
                return found(items, args, kwargs)
            _require_values(items, paths_of(tokens, self._names())[0])
            family = family_of(tokens)
            before = [graph for graph in self.families.get(family, []) if graph.classes.unchanged()]
            if len(before) >= (self.limit or recompile_limit()):
                return self._refuse(reason(before, tokens, items, self._names()), args, kwargs)
            graph = self._graph(tokens, items)
            why = self._why(before, tokens, items)
            with told(_name(self.fn), lambda: graph.compiled):
                result = graph(items, args, kwargs)
            self.made.append(Made(graph.name, why))
            self._keep(graph, before)
            return result

    def _why(self, before: list[Graph], tokens: tuple[Any, ...], items: list[Any]) -> str:
        """Why one more graph is made; empty for the first."""
        if before:
            return reason(before, tokens, items, self._names())
        return "arguments of other classes" if self.families else ""

    def _keep(self, graph: Graph, before: list[Graph]) -> None:
        """Has later calls use a graph, beside those of its family that are still right."""
        self.families[family_of(graph.tokens)] = [*before, graph]
        known = [other for other in self.graphs.get(graph.tokens, []) if other in before]
        self.graphs[graph.tokens] = [*known, graph]

    def _lower(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lowered:
        """Compiles for arguments, runs nothing, and keeps the graph where there was none."""
        name = _name(self.fn)
        if is_compiling() or is_transforming():
            raise RuntimeError(f"lower: call {name}.lower outside of transforms and compiled code")
        if self.settings["backend"] not in BACKENDS:
            raise TypeError(
                f"lower: what backend={self.settings['backend']!r:.60} makes cannot be saved. "
                f"Compile {name} with one of {', '.join(map(repr, BACKENDS))}"
            )
        with _making:
            items, tokens = pack_call(args, kwargs)
            names = self._names()
            _require_values(items, paths_of(tokens, names)[0])
            keeper, sizes = Keeper(), bool(self.settings.get("dynamic"))
            graph = self._new(tokens, items, every_size=sizes, keeper=keeper)
            with told(name, lambda: graph.compiled):
                graph.trace(items)
            keeper.running = True
            if self._find(tokens, items) is None:
                family = self.families.get(family_of(tokens), [])
                before = [other for other in family if other.classes.unchanged()]
                self.made.append(Made(graph.name, self._why(before, tokens, items)))
                self._keep(graph, before)
        return Lowered(name, names, graph, items, keeper, self.donation)

    def _graph(self, tokens: tuple[Any, ...], items: list[Any]) -> Graph:
        dynamic = self.settings.get("dynamic")
        if dynamic is None:
            inside = positions_in_modules(tokens)
            for graph in reversed(self.graphs.get(tokens, [])):
                changed = graph.resized(items)
                if changed and not changed & inside:
                    return self._new(tokens, items, like=graph)
        return self._new(tokens, items, every_size=bool(dynamic))

    def _new(self, tokens: Any, items: list[Any], **sizes: Any) -> Graph:
        return Graph(self.fn, tokens, items, self.settings, donation=self.donation, **sizes)

    def _names(self) -> list[str]:
        """The names of the positional parameters."""
        try:
            parameters = inspect.signature(self.fn).parameters.values()
        except (TypeError, ValueError):  # a builtin
            return []
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return [parameter.name for parameter in parameters if parameter.kind in kinds]

    def _refuse(self, why: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = getattr(self.fn, "__qualname__", repr(self.fn))
        message = f"{name} would be compiled again, once more than recompile_limit allows: {why}."
        if self.settings["fullgraph"]:
            raise RuntimeError(message)
        warnings.warn(f"{message} It is called as it is.", RuntimeWarning, stacklevel=4)
        return self.fn(*args, **kwargs)


def _name(fn: Callable[..., Any]) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def _require_values(items: list[Any], paths: list[str]) -> None:
    for item, path in zip(items, paths, strict=True):
        if isinstance(item, Lazy):
            raise UninitializedError(
                f"{path} is not initialized, so there is nothing to compile for. "
                f"Initialize first: module = module.initialize(rng)"
            )
