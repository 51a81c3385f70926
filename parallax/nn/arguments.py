"""What the constructors of layers share: checks of sizes, and torch's initial values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, sqrt
from typing import Any

from torch.nn import init

from parallax._errors.arguments import shown

__all__ = ["Sizes", "as_given", "at_least", "between", "integer", "is_int", "one_of", "per_dim",
           "positive", "uniform_within"]  # fmt: skip

Sizes = int | Sequence[int]
"""One number for every dimension, or one for each."""


def uniform_within(fan: int) -> Any:
    """An initializer: uniform between plus and minus ``1 / sqrt(fan)``."""
    bound = 1 / sqrt(fan) if fan > 0 else 0.0
    return partial(init.uniform_, a=-bound, b=bound)


def integer(layer: str, **values: Any) -> None:
    """Raises unless every value is an int and not a bool.

    Args:
        layer: the class that was given them.
        **values: by the name of the argument.

    Raises:
        TypeError: if one is something else.
    """
    for name, value in values.items():
        if not is_int(value):
            raise TypeError(
                f"{layer}({name}=): expected an int, got {shown(value)}. Write {name}=1"
            )


def at_least(layer: str, least: int, **sizes: Any) -> None:
    """Raises unless every size is an int and large enough.

    Args:
        layer: the class that was given them.
        least: the least allowed.
        **sizes: by the name of the argument.

    Raises:
        TypeError: if one is not an int.
        ValueError: if one is less.
    """
    for name, size in sizes.items():
        if not is_int(size):
            integer(layer, **{name: size})  # which says so
        if size < least:
            raise ValueError(
                f"{layer}({name}=): must be at least {least}, got {size}. Write {name}={least}"
            )


def positive(layer: str, **sizes: Any) -> None:
    """Raises unless every size is an int of at least one, as ``at_least`` does."""
    at_least(layer, 1, **sizes)


def between(layer: str, least: float, most: float = inf, **numbers: Any) -> None:
    """Raises unless every number is real and in a range.

    Args:
        layer: the class that was given them.
        least: the least allowed.
        most: the greatest allowed.
        **numbers: by the name of the argument.

    Raises:
        TypeError: if one is no real number.
        ValueError: if one is outside.
    """
    for name, number in numbers.items():
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(
                f"{layer}({name}=): expected a number, got {shown(number)}. "
                f"Write {name}={_example(least, most)}"
            )
        if not least <= number <= most:
            upper = "" if most == inf else f" and at most {most}"
            raise ValueError(
                f"{layer}({name}=): must be at least {least}{upper}, got {number}. "
                f"Write {name}={_example(least, most)}"
            )


def _example(least: float, most: float) -> float:
    return min(max(least, 0.1), most)


def per_dim(layer: str, name: str, value: Any, dims: int, least: int | None = 1) -> tuple[int, ...]:
    """One int for each dimension, given as one for all of them or as a sequence.

    Args:
        layer: the class that was given it.
        name: the name of the argument.
        value: what was given.
        dims: the number of dimensions.
        least: the least that each may be, if there is one.

    Raises:
        TypeError: if it is neither an int nor a sequence of ints.
        ValueError: if there are more or fewer than one for each dimension, or one is too small.
    """
    if is_int(value):
        found = (value,) * dims
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(map(is_int, value)):
        found = tuple(value)
    else:
        raise TypeError(_no_sizes(layer, name, value, dims))
    if len(found) != dims:
        raise ValueError(_no_sizes(layer, name, value, dims))
    if least is not None and min(found) < least:
        raise ValueError(
            f"{layer}({name}=): must be at least {least}, got {value!r}. Write {name}={least}"
        )
    return found


def _no_sizes(layer: str, name: str, value: Any, dims: int) -> str:
    return (
        f"{layer}({name}=): expected an int or {dims} of them, got {shown(value)}. "
        f"Write {name}=2 or {name}={(2,) * dims}"
    )


def as_given(layer: str, name: str, value: Any, dims: int, least: int | None = 1) -> Any:
    """As ``per_dim``, but one int stays one int, as some layers of torch show their arguments."""
    found = per_dim(layer, name, value, dims, least)
    return value if is_int(value) else found


def one_of(layer: str, name: str, value: Any, *choices: str) -> str:
    """Raises unless a value is one of the strings that an argument may be.

    Raises:
        ValueError: if it is not.
    """
    if value not in choices:
        words = ", ".join(map(repr, choices))
        raise ValueError(f"{layer}({name}=): expected one of {words}, got {shown(value)}")
    return str(value)


def is_int(value: Any) -> bool:
    """Whether a value is an int and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
