"""``compiled.lower(*args)``: compile without running, and write what was compiled to a file.

A file holds a header of plain text, which says where it can be used, and behind it a pickle: the
structures of arguments and results, the Python that dynamo made, and the graph with its library.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, overload

import torch
from torch import Tensor

from parallax._compat.artifacts import Keeper
from parallax._compat.bytecode import ReadsOutsideError, dump_code
from parallax._compat.dynamo import compiled_entries, global_state
from parallax._errors.arguments import shown
from parallax.compiler.donation import Donation
from parallax.compiler.graph import Graph
from parallax.compiler.guards import is_library
from parallax.random.sources import GlobalSource, KeySource, SeedSource

__all__ = [
    "MAGIC",
    "Compiled",
    "Compiler",
    "Leaf",
    "Lowered",
    "Method",
    "checked_path",
    "leaf_of",
    "other_of",
    "system",
]

MAGIC = b"parallax compiled function 1\n"

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)

_SCALARS = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


class Lowered:
    """A function compiled for one kind of arguments, as ``compiled.lower(*args)`` gives it.

    The compiled function has the graph, too: its next call with such arguments compiles nothing.
    """

    def __init__(
        self, name: str, labels: Sequence[str], graph: Graph, items: Sequence[Any], keeper: Keeper,
        donation: Donation | None,
    ) -> None:  # fmt: skip
        self._name = name
        self._problem = _problem(graph, items)
        self._content = _content(graph, items)
        self._content |= {
            "name": name,
            "labels": list(labels),
            "donation": None if donation is None else donation.parts(),
            "imports": sorted(name for name in sys.modules if name.startswith("parallax.")),
        }
        self._code = [entry.code for entry in compiled_entries(graph.code)]
        self._space: dict[str, Any] = graph.space
        self._made = list(keeper.made)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that ``parallax.load_compiled`` reads, with torch, Python and processor.

        The file holds what the function computes, with all that it read besides its arguments as
        it was: constants, configuration, code. It does not hold the source.

        Args:
            path: of the file, which is replaced.

        Raises:
            TypeError: if ``path`` is no path; if the function reads a tensor that is no argument,
                or writes to anything outside of itself; or if an argument holds what has no
                importable name.
        """
        target = checked_path("save", path, "step.lower(x).save")
        if self._problem is not None:
            raise TypeError(f"{self._name} cannot be saved: {self._problem}")
        if len(self._code) != 1 or len(self._made) > 1:
            raise TypeError(
                f"{self._name} cannot be saved: it is compiled in {len(self._code)} parts. Look "
                f"for what breaks the graph with parallax.compile({self._name}, fullgraph=True)"
            )
        try:
            traced = dump_code(self._code[0], self._space, _is_known)
        except ReadsOutsideError as error:
            raise TypeError(
                f"{self._name} cannot be saved: {error}, which is no argument and is not there in "
                f"another process. Make it an argument, and return what changes"
            ) from None
        graph = self._made[0]() if self._made else None
        try:
            body = pickle.dumps({**self._content, "traced": traced, "graph": graph})
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"{self._name} cannot be saved: {error}. Classes and functions that are held by "
                f"arguments or results are found by name in another process: define them at the "
                f"top level of a module"
            ) from error
        _write(target, MAGIC + json.dumps(system()).encode() + b"\n" + body)


class Compiled(Protocol[P, R_co]):
    """What ``compile`` returns: the function, and its ``lower``."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The function, compiled for such arguments where it is not yet."""
        ...

    def lower(self, *args: P.args, **kwargs: P.kwargs) -> Lowered:
        """Compiles for such arguments without running anything."""
        ...


class Method(Protocol[S_contra, P, R_co]):
    """A function whose first argument is called ``self``, as type checkers see it.

    A compiled one is told to be a plain function, so that it binds and may override ``forward``:
    pyright does so with nothing else. It has a ``lower`` all the same.
    """

    def __call__(_self, self: S_contra, *args: P.args, **kwargs: P.kwargs) -> R_co:  # noqa: N805
        """The method, of the instance as its first argument."""
        ...


class Compiler(Protocol):
    """What ``compile`` returns without a function: a decorator."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]  # as in compile
        self, fn: Method[S, P, R], /
    ) -> Callable[Concatenate[S, P], R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Compiled[P, R]: ...


class Leaf(NamedTuple):
    """What a compiled graph depends on of one tensor."""

    cls: str
    dtype: str
    device: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    flags: tuple[bool, ...]  # conjugated, negated, of inference mode


def leaf_of(tensor: Tensor) -> Leaf:
    """What is compared of a tensor at the first call of a loaded function."""
    return Leaf(
        type(tensor).__name__, str(tensor.dtype), str(tensor.device), tuple(tensor.shape),
        tensor.stride(), tensor.requires_grad,
        (tensor.is_conj(), tensor.is_neg(), tensor.is_inference()),
    )  # fmt: skip


def other_of(item: Any) -> Any:
    """What is compared of an item that is no plain tensor; ``NotImplemented`` if nothing is known.

    A number is a constant of the graph. Of a key that a module holds the graph gets the tensor.
    """
    if type(item) is KeySource:
        return leaf_of(item.key)
    if isinstance(item, (SeedSource, GlobalSource)):  # compiled code draws from no seed
        return type(item).__name__, repr(item)
    if isinstance(item, _SCALARS):
        return type(item).__name__, repr(item)  # tells -0.0 from 0.0, and NaN is itself
    return NotImplemented


def checked_path(verb: str, path: Any, call: str) -> Path:
    """The path of a file; a ``TypeError`` of ``verb`` if it is none."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"{verb}(path): expected a path, got {shown(path)}. Write {call}('step.plx')"
        )
    return Path(path)


def system() -> dict[str, str]:
    """What must be the same where a compiled function is loaded."""
    from parallax import __version__

    cpu = f"{platform.system()} {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    found = {
        "Parallax": __version__,
        "torch": torch.__version__,
        "Python": sys.implementation.cache_tag or sys.version.partition(" ")[0],
        "processor": cpu,
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        found["GPU"] = f"{torch.cuda.get_device_name()}, {major}.{minor}"
    return found


def _problem(graph: Graph, items: Sequence[Any]) -> str | None:
    """Why a graph cannot be used in another process, if it cannot."""
    if graph.writes:
        return "it writes into a tensor that it is given. Return a new one, or donate the argument"
    if graph.loose:
        return "its sizes are symbolic. Leave dynamic=True out, and save a file for each size"
    for k in graph.leaves.others:
        if other_of(items[k]) is NotImplemented:
            return (
                f"an argument holds a {type(items[k]).__name__}. Only tensors, modules, numbers, "
                f"texts and containers of them can be arguments of a saved function"
            )
    return None


def _content(graph: Graph, items: Sequence[Any]) -> dict[str, Any]:
    return {
        "tokens": graph.tokens,
        "leaves": [leaf_of(leaf) for leaf in graph.leaves.pick(items)],
        "own": graph.leaves.own,
        "same": graph.leaves.same,
        "others": {k: other_of(items[k]) for k in graph.leaves.others},
        "results": [(known.tokens, known.written) for known in graph.results],
        "written": [] if graph.given is None else graph.given.written,
        "state": global_state(),
    }


def _is_known(name: str, value: Any) -> bool:
    """Whether a global of traced code is there in another process, too."""
    if name.startswith("parallax_constant_"):
        return True
    return isinstance(value, (ModuleType, FunctionType, type)) and is_library(value)


def _write(path: Path, data: bytes) -> None:
    """Writes a file at once: whoever reads it meanwhile sees the old one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
