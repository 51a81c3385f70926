"""The one place where generated code becomes functions.

The callers write the text: ``flatten`` (building and collecting a tree), ``sealing``,
``generated_init``, ``optree_nodes``, ``tree.outside`` and ``compiler.opening`` (containers around
modules), ``bridge.signatures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["define", "function_of", "is_generated"]

_MARK = object()


def define(source: str, names: dict[str, Any], defined: Sequence[str]) -> list[Any]:
    """The objects of the names ``defined``, which source code defines.

    ``names`` are its globals, which its functions keep. They do not contain the defined objects
    themselves: a function in its own globals is a reference cycle, which would keep everything in
    them alive.
    """
    exec(source, names)
    names["__generated__"] = _MARK
    return [names.pop(name) for name in defined]


def is_generated(names: Any) -> bool:
    """Whether these are the globals of generated code, which nobody else writes to."""
    return type(names) is dict and names.get("__generated__") is _MARK


def function_of(head: str, body: Sequence[str], names: dict[str, Any]) -> Any:
    """The function with the signature ``name(arguments)`` and a body; see ``define``."""
    lines = [f"def {head}:", *(body or ["pass"])]
    return define("\n    ".join(lines), names, [head.partition("(")[0]])[0]
