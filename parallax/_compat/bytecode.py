"""What dynamo makes of a function, as bytes: the Python around a graph.

It takes the inputs of the graph from the arguments, and makes the results of its outputs. What it
reads beside the arguments is found by its instructions: the graph, modules of libraries, classes.
"""

from __future__ import annotations

import builtins
import dis
import importlib
import marshal
from collections.abc import Callable, Iterator
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

__all__ = ["ReadsOutsideError", "Traced", "dump_code", "load_code"]

_GRAPH = "__compiled_fn_"
_GLOBALS = ("LOAD_GLOBAL", "LOAD_NAME")
_WRITES = ("STORE_GLOBAL", "DELETE_GLOBAL", "MAKE_FUNCTION")
_CELLS = ("LOAD_DEREF", "LOAD_CLOSURE", "STORE_DEREF", "DELETE_DEREF")

Traced = dict[str, Any]
"""What ``dump_code`` gives: plain values, which can be pickled."""


class ReadsOutsideError(Exception):
    """The code reads or writes what is not an argument; the message says what."""


def dump_code(code: CodeType, space: dict[str, Any], known: Callable[[str, Any], bool]) -> Traced:
    """The code that dynamo made, and what it reads.

    Args:
        code: takes its arguments by position.
        space: its globals.
        known: whether a global is a module or constant that may be taken along.

    Raises:
        ReadsOutsideError: if it reads or writes anything else.
    """
    modules, constants = {}, {}
    graph = None
    for kind, name, attribute in _reads(code):
        if kind in _WRITES:
            raise ReadsOutsideError(f"it writes to {name}")
        if kind in _CELLS:
            if name not in code.co_cellvars:
                raise ReadsOutsideError("it reads or writes what it closes over")
        elif name.startswith(_GRAPH):
            graph = name
        elif name not in space:
            if not hasattr(builtins, name):
                raise ReadsOutsideError(f"it reads {name}")
        elif isinstance(space[name], ModuleType) and (
            known(name, space[name]) or isinstance(getattr(space[name], attribute, None), type)
        ):
            modules[name] = space[name].__name__
        elif known(name, space[name]):
            constants[name] = space[name]
        else:
            raise ReadsOutsideError(f"it reads or writes {_named(name, space[name], attribute)}")
    return {"code": marshal.dumps(code), "graph": graph, "modules": modules, "constants": constants}


def load_code(traced: Traced, graph: Callable[..., Any] | None) -> Callable[..., Any]:
    """The function whose code was dumped, around a graph."""
    code: CodeType = marshal.loads(traced["code"])
    space: dict[str, Any] = {"__builtins__": builtins, **traced["constants"]}
    for name, module in traced["modules"].items():
        space[name] = importlib.import_module(module)
    if traced["graph"] is not None:
        space[traced["graph"]] = graph
    cells = tuple(CellType() for _ in code.co_freevars)
    return FunctionType(code, space, code.co_name, None, cells)


def _reads(code: CodeType) -> Iterator[tuple[str, str, str]]:
    """The instructions about globals and cells: kind, name, and the attribute that is taken."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
        if step.opname in (*_GLOBALS, *_WRITES, *_CELLS):
            taken = after.argval if after.opname in ("LOAD_ATTR", "LOAD_METHOD") else ""
            name = step.argval if isinstance(step.argval, str) else "a function that it makes"
            yield step.opname, name, str(taken)


def _named(name: str, value: Any, attribute: str) -> str:
    if isinstance(value, ModuleType):
        return f"{value.__name__}.{attribute}" if attribute else value.__name__
    return name
