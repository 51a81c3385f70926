"""Checks arguments of optimizers, schedules and transformations against their annotations."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import shown
from parallax.core.nodes import is_module

__all__ = ["check_at_least", "check_fields", "check_kind", "check_names", "check_optimizer"]

_KINDS: dict[str, str] = {
    "Number": "a number, a tensor of no dimension, or a function of the step",
    "Fixed": "numbers or tensors of no dimension, the same in all steps",
    "float": "a number",
    "int": "an int",
    "bool": "True or False",
    "str": "a string",
    "Callable": "a function",
}
_EXAMPLES: dict[str, Any] = {"Number": 0.1, "float": 0.1, "int": 10, "bool": True}


def check_fields(what: str, value: Any, changes: Mapping[str, Any] | None = None) -> None:
    """Checks the fields of a dataclass against their annotations.

    Args:
        what: the name of its class, for the error.
        value: the dataclass.
        changes: other values for some of the fields.

    Raises:
        TypeError: naming the field, what it is, and what came.
        ValueError: if a number is nan.
    """
    if dynamo.is_compiling():
        return
    for entry in fields(value):
        if entry.init and (changes is None or entry.name in changes):
            given = getattr(value, entry.name) if changes is None else changes[entry.name]
            example = None if entry.default is MISSING else entry.default
            check_kind(what, entry.name, given, str(entry.type), example)


def check_kind(what: str, name: str, value: Any, annotation: str, example: Any = None) -> None:
    """Checks one argument against an annotation.

    Args:
        what: the function or class.
        name: the argument.
        value: what came.
        annotation: such as ``"float"``, ``"bool | None"`` or ``"tuple[float, float]"``.
        example: a value to write instead.

    Raises:
        TypeError: if it is something else.
        ValueError: if it is nan.
    """
    kind = annotation.split("[", maxsplit=1)[0].split(" | ", maxsplit=1)[0]
    if value is None and annotation.endswith("| None"):
        return
    if kind == "tuple" and re.fullmatch(r"tuple\[[\w |]+(, [\w |.]+)*\]", annotation):
        _check_row(what, name, value, annotation, example)
        return
    if kind not in _KINDS:
        return
    instead = _EXAMPLES.get(kind) if example is None else example
    if not _is(value, kind):
        write = "" if instead is None else f". Write {what}({name}={instead!r})"
        if what.startswith("schedules.") and hasattr(
            value, "step"
        ):  # as torch's takes an optimizer
            write = f". Write optim.SGD(lr=optim.{what}(...)): it stands in the place of the number"
        expected = _described(annotation)
        raise TypeError(f"{what}: {name} must be {expected}, got {shown(value)}{write}")
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{what}: {name} must be {_KINDS[kind]}, got nan. Write {name}={instead}")


def _check_row(what: str, name: str, value: Any, annotation: str, example: Any) -> None:
    inner = re.sub(r"^tuple\[|\].*$", "", annotation).split(", ")
    several = inner[-1] == "..."
    if not isinstance(value, tuple | list) or not (several or len(value) == len(inner)):
        count = "several" if several else str(len(inner))
        raise TypeError(
            f"{what}: {name} must be a tuple of {count} values, got {shown(value)}. "
            f"Write {what}({name}={example or (1,) * len(inner)!r})"
        )
    kinds = inner[:1] * len(value) if several else inner
    for item, kind in zip(value, kinds, strict=True):
        check_kind(what, name, item, "Fixed" if kind == "Any" and not several else kind, example)


def _is(value: Any, kind: str) -> bool:
    if kind == "bool":
        return type(value) is bool
    if kind == "str":
        return type(value) is str
    if kind == "Callable":
        return callable(value)
    if isinstance(value, bool):
        return False
    if kind == "int":
        return isinstance(value, int)
    if isinstance(value, Tensor):  # how many numbers it holds is checked when it is used
        return kind in ("Number", "Fixed") or value.ndim == 0
    if isinstance(value, int | float):
        return True
    wrong = isinstance(value, type | torch.nn.Module) or is_module(value)
    return kind == "Number" and callable(value) and not wrong


def _described(annotation: str) -> str:
    words = _KINDS[annotation.split("[", maxsplit=1)[0].split(" | ", maxsplit=1)[0]]
    return f"{words}, or None" if annotation.endswith("| None") else words


def check_at_least(
    what: str, name: str, value: Any, least: float, *, strictly: bool = False
) -> None:
    """Raises if a number is too small; tensors are not read.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(value, Tensor) or value is None:
        return
    if value < least or (strictly and value == least):
        bound, example = (f"above {least}", least + 1) if strictly else (f"{least} or more", least)
        raise ValueError(f"{what}: {name} must be {bound}, got {value!r}. Write {name}={example}")


def check_optimizer(what: str, name: str, value: Any) -> None:
    """Raises unless something has ``init`` and ``step``.

    Raises:
        TypeError: naming the argument.
    """
    if isinstance(value, type) or not (hasattr(value, "init") and hasattr(value, "step")):
        raise TypeError(
            f"{what}: {name} must be an optimizer, got {shown(value)}. "
            f"Pass an instance: optim.AdamW(lr=1e-3)"
        )


def check_names(cls: type, hyper: dict[str, Any]) -> None:
    """Checks the names of what a class of optimizers is given; it checks the values itself.

    Raises:
        TypeError: naming what it has.
    """
    parameters = inspect.signature(cls).parameters
    if any([p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()]):
        return
    names = list(parameters)[1:]
    for name in hyper:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            mean = f"Did you mean {near[0]!r}? " if near else ""
            raise TypeError(
                f"from_torch: {cls.__name__} has no hyper-parameter {name!r}. {mean}"
                f"It has {', '.join(names)}"
            )
