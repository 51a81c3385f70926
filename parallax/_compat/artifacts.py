"""What inductor makes of a graph, as bytes: compiled in one process, loaded in another.

torch can write what AOTAutograd and inductor made of a graph, but with the C++ as source text: who
loads it compiles again. Here the compiled library goes with it, and is what is loaded.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.fx import GraphModule

__all__ = ["BACKENDS", "Keeper", "NotRunError", "load_graph"]

BACKENDS = ("inductor", "eager")
"""The backends whose graphs can be saved."""

# Both directions are compiled at once, and what is made of them can be written.
_WHOLE = {
    "strict_autograd_cache": True,
    "bypass_autograd_cache_key": True,
    "bundled_autograd_cache": True,
    "force_non_lazy_backward_lowering": True,
    "force_autograd_cache": True,
}


class NotRunError(Exception):
    """Raised in place of running a graph that was to be compiled only."""


class Library(NamedTuple):
    """A compiled library, and the C++ it was compiled from."""

    source: str
    binary: bytes


class Keeper:
    """Compiles the graphs of one function so that they can be saved.

    Attributes:
        running: whether a graph is run; otherwise it raises ``NotRunError``.
        made: the graphs, in the order in which they were compiled.
    """

    def __init__(self) -> None:
        self.running = False
        self.made: list[Callable[[], bytes]] = []

    def backend(self, name: str, options: dict[str, Any]) -> Callable[..., Any]:
        """A backend for dynamo that does what the one of this name does.

        Args:
            name: one of ``BACKENDS``.
            options: inductor's.
        """

        def compiled(graph: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            if name == "eager":
                self.made.append(lambda: _dump_eager(graph))
                return self._run(graph.forward)
            found = _inductor(graph, inputs, options)
            self.made.append(lambda: _dump_inductor(found))
            return self._run(found)

        return compiled

    def _run(self, graph: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            if not self.running:
                raise NotRunError
            return graph(*args)

        return run


def load_graph(data: bytes) -> Callable[..., Any]:
    """The graph that was written by ``Keeper``: a function of its inputs."""
    kind, content = pickle.loads(data)
    return _load_eager(content) if kind == "eager" else _load_inductor(content)


# -- eager ----------------------------------------------------------------------------------------


def _dump_eager(graph: GraphModule) -> bytes:
    from torch._dynamo.aot_compile_types import GraphModuleSerializableCallable

    made = GraphModuleSerializableCallable(graph)
    return pickle.dumps(
        ("eager", GraphModuleSerializableCallable.serialize_compile_artifacts(made))
    )


def _load_eager(content: bytes) -> Callable[..., Any]:
    from torch._dynamo.aot_compile_types import GraphModuleSerializableCallable

    importlib.import_module("torch._inductor.inductor_prims")  # optimizers use one of them
    made: Any = GraphModuleSerializableCallable.deserialize_compile_artifacts(content)
    forward: Callable[..., Any] = made.graph_module.forward
    return forward


# -- inductor -------------------------------------------------------------------------------------


def _inductor(graph: GraphModule, inputs: Sequence[Any], options: dict[str, Any]) -> Any:
    from torch._inductor.compile_fx import compile_fx

    with torch._functorch.config.patch(_WHOLE):
        return compile_fx(graph, inputs, config_patches=options)


def _dump_inductor(compiled: Any) -> bytes:
    with torch._functorch.config.patch(_WHOLE):
        entry = compiled.serialize()
        parts = [part.result for part in (entry.compiled_fw, entry.compiled_bw) if part is not None]
        libraries = [library for part in parts for library in _libraries_of(part.cache_key)]
        return pickle.dumps(("inductor", (entry, libraries)))


def _libraries_of(key: str) -> Iterator[Library]:
    """The library that the code around the kernels is, if it is C++."""
    from torch._inductor.codecache import PyCodeCache

    for module in PyCodeCache.modules:
        # What the library exports is a builtin function, which knows its module.
        entry = getattr(module, "inductor_entry", None)
        path = getattr(getattr(entry, "__self__", None), "__file__", None)
        if getattr(module, "key", None) == key and path is not None:
            source = Path(path).with_suffix(".cpp")
            if source.exists():
                yield Library(source.read_text(), Path(path).read_bytes())
            return


def _load_inductor(content: Any) -> Callable[..., Any]:
    # Beside what it uses, this loads the classes that the content is made of.
    from torch._functorch._aot_autograd.aot_autograd_result import deserialize_bundled_cache_entry
    from torch._inductor import config

    entry, libraries = content
    with config.patch(enable_autograd_for_aot=True), _loading(libraries):
        return deserialize_bundled_cache_entry(entry)


@contextmanager
def _loading(libraries: Sequence[Library]) -> Iterator[None]:
    """Has inductor take these libraries where it would compile their source."""
    from torch._inductor.codecache import CppWrapperCodeCache as Cache

    compiled = Cache.load_pybinding

    def load(argtypes: Any, main_code: str, *args: Any, **kwargs: Any) -> Any:
        for library in libraries:
            if library.source.startswith(main_code):
                return getattr(_opened(Cache, library), Cache.entry_function)
        return compiled(argtypes, main_code, *args, **kwargs)

    with mock.patch.object(Cache, "load_pybinding", load):
        yield


def _opened(cache: Any, library: Library) -> Any:
    from torch._inductor.codecache import code_hash

    key = code_hash(library.source)
    with tempfile.TemporaryDirectory(prefix="parallax-") as folder:
        path = os.path.join(folder, f"{key}.so")
        Path(path).write_bytes(library.binary)
        return cache._load_library(path, key)  # stays open when its file is gone
