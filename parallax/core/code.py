"""The one place where generated code becomes functions.

Who generates code writes the text; see ``shape`` (building and collecting a tree), ``sealing``,
``declare`` (``__init__``), ``registry`` (optree's functions), ``tree.outside`` and
``compiler.opening`` (containers around modules) and ``bridge.signatures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["define", "function_of"]


def define(source: str, names: dict[str, Any], defined: Sequence[str]) -> list[Any]:
    """What Python text defines.

    Args:
        source: statements.
        names: the globals of the text, kept by its functions. Nothing in them is a name of what is
            defined: a function in its own globals is a cycle, which keeps all in them alive.
        defined: the names of what is returned.
    """
    exec(source, names)
    return [names.pop(name) for name in defined]


def function_of(head: str, body: Sequence[str], names: dict[str, Any]) -> Any:
    """The function of a head, ``name(arguments)``, and of statements; see ``define``."""
    lines = [f"def {head}:", *(body or ["pass"])]
    return define("\n    ".join(lines), names, [head.partition("(")[0]])[0]
