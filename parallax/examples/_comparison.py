"""Compares implementations of one computation: lines of code, time, and whether they agree."""

from __future__ import annotations

import ast
import inspect
import textwrap
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

_REPEATS = 5


class Way(NamedTuple):
    """One implementation: its name, lines of code, seconds for a call, and the result."""

    name: str
    lines: int
    seconds: float
    result: Any

    def __str__(self) -> str:
        return f"{self.name:32} {self.lines:3} lines {1e3 * self.seconds:9.2f} ms"


def ways(*named: tuple[str, Callable[[], Any], tuple[Any, ...]]) -> list[Way]:
    """Measures implementations of one computation, interleaved.

    Args:
        *named: for each a name, the function to call, and all functions and classes whose lines
            count.

    Returns:
        The ways, with the median time of a call.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them measure what else the machine is doing
    try:
        results = [run() for _, run, _ in named]
        times: list[list[float]] = [[] for _ in named]
        for _ in range(_REPEATS):
            for (_, run, _), found in zip(named, times, strict=True):
                start = time.perf_counter()
                run()
                found.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return [
        Way(name, sum(map(lines_of, code)), sorted(found)[_REPEATS // 2], result)
        for (name, _, code), found, result in zip(named, times, results, strict=True)
    ]


def lines_of(code: Any) -> int:
    """How many lines of code a function or class has, docstrings and blank lines left out.

    Example:
        >>> lines_of(lines_of)
        3
    """
    parsed = ast.parse(textwrap.dedent(inspect.getsource(code)))
    return len(_without_docstrings(parsed).splitlines())


def _without_docstrings(parsed: ast.Module) -> str:
    for node in ast.walk(parsed):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(parsed)
