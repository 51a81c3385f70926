"""The message of a check: text with the names of values in braces, as in ``str.format``."""

from __future__ import annotations

from functools import lru_cache
from string import Formatter
from typing import Any

from parallax._compat.opaque import real

__all__ = ["check_message", "filled", "rendered"]

_formatter = Formatter()


@real
@lru_cache(256)
def check_message(message: str, names: tuple[str, ...]) -> None:
    """Raises unless the braces of a message hold nothing but these names.

    Raises:
        TypeError: if they hold anything else.
    """
    try:
        fields = [field for _, field, _, _ in _formatter.parse(message) if field is not None]
    except ValueError as error:
        raise TypeError(
            f"debug.check: {message!r} is no text to be formatted: {error}. Write a brace that is "
            f"meant as such twice: {{{{ or }}}}"
        ) from None
    for field in fields:
        if field not in names:
            given = ", ".join(names) or "no values"
            raise TypeError(
                f"debug.check: the message names {{{field}}}, and was given {given}. Give it by "
                f"this name: debug.check(x > 0, 'x is {{x}}', x=x); or write braces twice"
            )


@real
def filled(message: str, tensors: tuple[str, ...], others: dict[str, Any]) -> str:
    """The message around all values but tensors, with the names of all that it does not name."""
    parts, named = [], set()
    for literal, field, spec, conversion in _formatter.parse(message):
        parts.append(_escaped(literal))
        if field is None:
            continue
        named.add(field)
        if field in tensors:
            parts.append(f"{{{field}:{spec}}}" if spec else f"{{{field}}}")
        else:
            value = _formatter.convert_field(others[field], conversion)
            parts.append(_escaped(_formatted(value, spec or "")))
    rest = [f"{name}={{{name}}}" for name in tensors if name not in named]
    rest += [f"{name}={_escaped(repr(others[name]))}" for name in others if name not in named]
    return "".join(parts) + ("; " * bool(rest)) + ", ".join(rest)


def rendered(message: str, values: dict[str, Any]) -> str:
    """The message around values, each in its format if that is one for such a value."""
    parts = []
    for literal, field, spec, _ in _formatter.parse(message):
        parts.append(literal)
        if field is not None:
            parts.append(_formatted(values[field], spec or ""))
    return "".join(parts)


def _formatted(value: Any, spec: str) -> str:
    try:
        return format(value, spec)
    except (TypeError, ValueError):  # of one number, say, and this is a vector
        return str(value)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
