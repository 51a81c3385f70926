"""Whether two attributes of two modules are alike, so that the modules count as built alike.

Blueprints that are alike count as one, so every part is compared. Equality as a class defines it
may leave out a part that matters, as that of a dataclass does. Two functions that the same line
made around the same values are alike.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor

__all__ = ["same"]

Seen = frozenset[tuple[int, int]]


def _same_function(one: types.FunctionType, two: types.FunctionType, seen: Seen) -> bool:
    """Whether two functions were made by the same line around the same values."""
    return (
        one.__code__ is two.__code__
        and same(_cells(one), _cells(two), seen)
        and same(one.__defaults__, two.__defaults__, seen)
        and same(one.__kwdefaults__, two.__kwdefaults__, seen)
    )


def _cells(function: types.FunctionType) -> list[Any]:
    """What a function closes over."""
    found = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # not bound yet
            found.append(None)
    return found


def same(one: Any, two: Any, seen: Seen = frozenset()) -> bool:
    """Whether two attributes are alike, part by part.

    Equality as a class defines it is not enough: a dataclass may leave out a part that matters.
    It decides only where there are no parts to look at. ``seen`` are the pairs around this one.
    """
    if one is two or (id(one), id(two)) in seen:
        return True
    cls = type(one)
    if cls is not type(two):
        return False
    if cls in (int, bool, str, bytes, torch.dtype, torch.device):
        return bool(one == two)
    if cls is float:
        return one.hex() == two.hex()  # type: ignore[no-any-return]  # of strings
    seen = seen | {(id(one), id(two))}
    if isinstance(one, Tensor):
        alike = one.shape == two.shape and one.dtype == two.dtype and one.device == two.device
        return alike and (one.is_meta or torch.equal(one, two))
    if cls is types.FunctionType:
        return _same_function(one, two, seen)
    if cls is functools.partial:
        first, second = ((f.func, f.args, f.keywords) for f in (one, two))
        return same(first, second, seen)
    if isinstance(one, (list, tuple)):
        items = zip(one, two, strict=False)
        alike = len(one) == len(two) and all(same(a, b, seen) for a, b in items)
    elif isinstance(one, dict):
        alike = list(one) == list(two) and same(list(one.values()), list(two.values()), seen)
    elif hasattr(one, "__dict__") and not isinstance(one, (type, types.ModuleType)):
        return same(vars(one), vars(two), seen)
    else:
        return _equal(one, two)
    return alike and same(getattr(one, "__dict__", None), getattr(two, "__dict__", None), seen)


def _equal(one: Any, two: Any) -> bool:
    try:
        return bool(one == two)
    except (RuntimeError, TypeError, ValueError):
        return False
