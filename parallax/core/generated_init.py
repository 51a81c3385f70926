"""The ``__init__`` that a class gets without writing one: it takes the fields, in order."""

from __future__ import annotations

import itertools
from typing import Any

from parallax.core.code import function_of
from parallax.core.fields import MISSING, Field

__all__ = ["write_init"]

_IMMUTABLE = (int, float, complex, str, bool, bytes, type(None))


def write_init(cls: type, fields: dict[str, Field]) -> Any:
    """A generated ``__init__`` that takes the fields as arguments, in order."""
    taken = [f for f in fields.values() if f.init]
    positional = [f for f in taken if not f.kw_only]
    for before, after in itertools.pairwise(positional):
        if before.has_default and not after.has_default:
            raise TypeError(
                f"{cls.__name__}.{after.name} has no default but follows {before.name}, which "
                f"has one. Give it a default, or write field(kw_only=True)."
            )
    scope: dict[str, Any] = {"MISSING": MISSING, "put": object.__setattr__}
    parts = [_argument(f, scope) for f in positional]
    keywords = [_argument(f, scope) for f in taken if f.kw_only]
    if keywords:
        parts += ["*", *keywords]
    lines = [
        f"if {f.name} is not MISSING: put(self, {f.name!r}, {f.name})"
        if f.has_default
        else f"put(self, {f.name!r}, {f.name})"
        for f in taken
    ]
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    made = function_of(f"__init__({', '.join(['self', *parts])})", lines, scope)
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__module__ = cls.__module__
    made.__annotations__ = {f.name: f.annotation for f in taken} | {"return": None}
    return made


def _argument(declared: Field, scope: dict[str, Any]) -> str:
    if not declared.has_default:
        return declared.name
    if type(declared.default) in _IMMUTABLE:
        scope[f"default_{declared.name}"] = declared.default
        return f"{declared.name}=default_{declared.name}"
    return f"{declared.name}=MISSING"
