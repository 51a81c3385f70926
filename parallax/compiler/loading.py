"""``load_compiled``: a function that was compiled in another process."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any

from parallax._compat.artifacts import load_graph
from parallax._compat.bytecode import load_code
from parallax._compat.dynamo import global_state, is_compiling, state_check
from parallax._compat.modes import is_transforming
from parallax._errors.arguments import shown
from parallax.compiler.donation import Donation
from parallax.compiler.graph import Graph
from parallax.compiler.leaves import Leaves
from parallax.compiler.lowering import MAGIC, Leaf, checked_path, leaf_of, other_of, system
from parallax.compiler.packing import pack_call, paths_of
from parallax.compiler.reasons import changed
from parallax.compiler.results import Loaded

__all__ = ["load_compiled"]

_STATES = {
    "grad_mode": "torch.set_grad_enabled({})",
    "num_threads": "torch.set_num_threads({})",
    "deterministic_algorithms": "torch.use_deterministic_algorithms({})",
}


def load_compiled(path: str | os.PathLike[str]) -> Callable[..., Any]:
    """The function in a file of ``parallax.compile(...).lower(*args).save(path)``.

    Nothing is traced and nothing compiled. It takes such arguments as it was lowered for: the same
    classes, constants, modes, sizes, dtypes and devices. Arguments that were donated are given
    away. Its gradient can be taken from outside where it was lowered for tensors that require grad.

    A file holds machine code: load only what you would run. Classes of modules are imported by
    their names. What else the function is made of is as it was when it was saved, whatever its
    source says now.

    Args:
        path: of the file.

    Returns:
        The function.

    Raises:
        TypeError: if ``path`` is no path.
        RuntimeError: if it was compiled for another torch, Python, Parallax or processor; or from a
            call with other arguments, under other modes of torch, or in a transform.
        ValueError: if the file is no such file or damaged, or a class that it names is gone.

    Example:
        >>> import tempfile, torch, parallax
        >>> @parallax.compile(backend="eager")
        ... def double(x):
        ...     return 2 * x
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     double.lower(torch.ones(2)).save(f"{folder}/double.plx")
        ...     loaded = parallax.load_compiled(f"{folder}/double.plx")
        >>> loaded(torch.ones(2))
        tensor([2., 2.])
    """
    data = checked_path("load_compiled", path, "parallax.load_compiled").read_bytes()
    if not data.startswith(MAGIC):
        raise ValueError(
            f"{path} is no compiled function. Write one with "
            f"parallax.compile(step).lower(*args).save(path)"
        )
    header, _, body = data[len(MAGIC) :].partition(b"\n")
    _require_system(path, json.loads(header))
    try:
        content = pickle.loads(body)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"{path}: what the function takes or returns is not here: {error}. Its classes are "
            f"found by name; make them importable, or save the function again"
        ) from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is cut off or damaged: {error}. Write it again with "
            f"parallax.compile(step).lower(*args).save(path)"
        ) from error
    _import_operators(path, content["imports"])
    graph = None if content["graph"] is None else load_graph(content["graph"])
    return _Function(content, load_code(content["traced"], graph)).wrapper()


def _require_system(path: Any, saved: dict[str, str]) -> None:
    here = system()
    for name, value in saved.items():
        if here.get(name) != value:
            raise RuntimeError(
                f"{path} was compiled for {name} {value}, and here is {here.get(name)}. Compile "
                f"it here: parallax.compile(step).lower(*args).save({str(path)!r})"
            )


def _import_operators(path: Any, modules: Sequence[str]) -> None:
    """Imports the modules of Parallax that define the operators of the graph."""
    try:
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(
            f"{path} was compiled for another Parallax than the one here: {error}. Compile it "
            f"here: parallax.compile(step).lower(*args).save({str(path)!r})"
        ) from error


class _Function:
    """One graph, and what it is compared with at each call."""

    def __init__(self, content: dict[str, Any], run: Callable[..., Any]) -> None:
        self._content = content
        self._name: str = content["name"]
        self._tokens = _interned(content["tokens"])
        self._others: list[tuple[int, Any]] = list(content["others"].items())
        self._state: str = content["state"]
        self._same_state = state_check(self._state)
        results = [(_interned(tokens), written) for tokens, written in content["results"]]
        self._loaded = Loaded(run, results, content["written"])
        self._graph: Graph | None = None

    def wrapper(self) -> Callable[..., Any]:
        """The function that users call."""
        name = self._name

        def loaded(*args: Any, **kwargs: Any) -> Any:
            if is_compiling() or is_transforming():
                raise RuntimeError(
                    f"{name} was loaded compiled, so it cannot be part of a transform or of "
                    f"another compiled function. Call the function it was compiled from"
                )
            return call(args, kwargs)

        loaded.__name__ = loaded.__qualname__ = name
        parts = self._content["donation"]
        donation = None if parts is None else Donation(loaded, *parts)

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._same_state():
                raise RuntimeError(self._other_state())
            graph = self._graph
            if graph is not None:
                opened: Sequence[Any] | None = graph.open(args, kwargs)
                if opened is not None:
                    if graph.given is not None:
                        opened = graph.given.secured(opened)
                    if graph.fits(opened) and self._same_others(opened):
                        return graph(opened, args, kwargs)
            items, tokens = pack_call(args, kwargs)
            self._require(tokens, items)
            if donation is not None:
                items = donation.secured(tokens, items, args, kwargs)
            if graph is None:
                graph = Graph(None, self._tokens, items, {}, donation=donation, loaded=self._loaded)
                self._graph = graph
            return graph(items, args, kwargs)

        return loaded

    # -- what is compared -------------------------------------------------------------------------

    def _same_others(self, items: Sequence[Any]) -> bool:
        return all(other_of(items[k]) == saved for k, saved in self._others)

    def _require(self, tokens: tuple[Any, ...], items: Sequence[Any]) -> None:
        """Refuses other arguments, by the name of what differs."""
        why = self._other_structure(tokens) or self._other_items(items)
        if why is not None:
            raise RuntimeError(
                f"{self._name} was compiled for other arguments: {why}. Save another file for "
                f"these: parallax.compile({self._name}).lower(*args).save(path)"
            )

    def _other_structure(self, tokens: tuple[Any, ...]) -> str | None:
        if tokens == self._tokens:
            return None
        if tokens[:2] != self._tokens[:2]:
            return f"it took {_call(self._tokens)}, and gets {_call(tokens)}"
        before = paths_of(self._tokens, self._content["labels"])
        now = paths_of(tokens, self._content["labels"])
        for path, structure in before[1].items():
            other = now[1].get(path)
            if other is not None and other != structure:
                return changed(path, structure, other)
        gone = [path for path in before[0] if path not in now[0]]
        come = [path for path in now[0] if path not in before[0]]
        if gone or come:
            return f"it took {_listed(gone)}, where it gets {_listed(come)}"
        return "the containers of its arguments are others"

    def _other_items(self, items: Sequence[Any]) -> str | None:
        paths = paths_of(self._tokens, self._content["labels"])[0]
        now, then = Leaves(items), self._content["same"]
        for pairs, others, how in (
            (now.same, then, "are one tensor, and were two"),
            (then, now.same, "were one tensor, and are two"),
        ):
            for one, two in pairs:
                if (one, two) not in others:
                    return f"{paths[two]} and {paths[one]} {how}"
        for k, item in enumerate(items):
            if (k in now.others) != (k in self._content["others"]):
                before = "a plain tensor" if k in now.others else "none"
                return f"{paths[k]} was {before}, and is {shown(item)}"
        names = now.pick(paths)
        for name, leaf, saved in zip(names, now.pick(items), self._content["leaves"], strict=True):
            found = leaf_of(leaf)
            for what, one, two in zip(Leaf._fields, saved, found, strict=True):
                if one != two:
                    return f"the {what} of {name} was {one}, and is {two}"
        for k, saved in self._others:
            found = other_of(items[k])
            if found != saved:
                return f"{paths[k]} was {_spelled(saved)}, and is {_spelled(found, items[k])}"
        return None

    def _other_state(self) -> str:
        then, now = json.loads(self._state), json.loads(global_state())
        name = next((key for key in then if then[key] != now.get(key)), "a mode of torch")
        was = then.get(name)
        line = _STATES.get(name, "").format(was)
        return (
            f"{self._name} was compiled where torch's {name} was {was}, and here it is "
            f"{now.get(name)}. {'Write ' + line if line else 'Set it as it was'}, or compile anew"
        )


def _interned(value: Any) -> Any:
    """Tokens with the texts that are compared by identity."""
    if type(value) is str:
        return sys.intern(value)
    return tuple([_interned(part) for part in value]) if type(value) is tuple else value


def _spelled(saved: Any, item: Any = None) -> str:
    if isinstance(saved, Leaf):
        return f"a key of shape {saved.shape}, dtype {saved.dtype}, on {saved.device}"
    return shown(item) if saved is NotImplemented else f"the {saved[0]} {saved[1]:.80}"


def _listed(paths: Sequence[str]) -> str:
    return ", ".join([*paths[:3], *["..."] * (len(paths) > 3)]) or "nothing"


def _call(tokens: tuple[Any, ...]) -> str:
    names = "".join(f" and {name}=" for name in tokens[1])
    return f"{tokens[0]} arguments{names}"
