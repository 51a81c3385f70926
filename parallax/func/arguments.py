"""Checks of what a transform is given besides the arguments of the function."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["called", "check_argnums", "check_chunk_size", "check_flags", "check_in_dims",
           "check_randomness", "name_of", "short"]  # fmt: skip

RANDOMNESS = ("error", "same", "different")


def name_of(func: Any) -> str:
    """What to call a function in an error message."""
    return str(getattr(func, "__name__", type(func).__name__))


def short(value: Any) -> str:
    """A value in a few words: a tensor, module or long text by its class."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def called(name: str, func: Any) -> str:
    """How the call of a transform is named in error messages: ``func.grad(loss)``.

    Raises:
        TypeError: if what is to be transformed is no function.
    """
    if not callable(func):
        raise TypeError(
            f"func.{name}: func must be a function, got {short(func)}. "
            f"Write func.{name}(f, ...), where f is the function itself: loss, not loss(x)"
        )
    return f"func.{name}({name_of(func)})"


def check_argnums(what: str, argnums: Any) -> None:
    """Raises a ``TypeError`` unless it is an int or a tuple, as an argument of the function is."""
    if type(argnums) is not int and not isinstance(argnums, int | tuple):
        raise TypeError(
            f"{what}: argnums must be an int or a tuple of ints, got {short(argnums)}. "
            f"Write argnums=0; the arguments of the function are given to what this returns: "
            f"{what}(model, x)"
        )


def check_flags(what: str, **flags: Any) -> None:
    """Raises a ``TypeError`` unless each is true or false."""
    for name, flag in flags.items():
        if type(flag) is not bool:
            raise TypeError(f"{what}: {name} must be a bool, got {short(flag)}. Write {name}=True")


def check_randomness(what: str, randomness: Any) -> None:
    """Raises a ``ValueError`` unless it is one of the three words."""
    if not isinstance(randomness, str) or randomness not in RANDOMNESS:
        raise ValueError(
            f"{what}: randomness must be 'error', 'same' or 'different', got {short(randomness)}. "
            f"Write randomness='different' for numbers of its own for each member"
        )


def check_chunk_size(what: str, chunk_size: Any) -> None:
    """Raises unless it is ``None`` or a positive int."""
    if chunk_size is None:
        return
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
        raise TypeError(
            f"{what}: chunk_size must be an int or None, got {short(chunk_size)}. "
            f"Write chunk_size=16, or None for all at once"
        )
    if chunk_size < 1:
        raise ValueError(
            f"{what}: chunk_size must be 1 or more, got {chunk_size}. Write None for all at once"
        )


def check_in_dims(what: str, in_dims: Any) -> None:
    """Raises a ``TypeError`` unless it is an int or a tuple."""
    if not isinstance(in_dims, (int, tuple)) or isinstance(in_dims, bool):
        raise TypeError(
            f"{what}: in_dims must be an int or a tuple with an entry for each argument, "
            f"got {short(in_dims)}. Write in_dims=0, or in_dims=(None, 0) to share the first"
        )
