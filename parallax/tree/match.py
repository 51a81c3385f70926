"""Finds the nodes and leaves that a condition matches: a path, glob, role, type, mask, function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from parallax._errors.arguments import shown
from parallax.core.fields import Buffer, Parameter
from parallax.core.nodes import is_module
from parallax.tree.around import containers
from parallax.tree.chart import Entry
from parallax.tree.lambdas import by_lambda
from parallax.tree.masks import as_mask, meant_by
from parallax.tree.paths import by_text, in_order, of_role
from parallax.tree.places import Survey

__all__ = ["arity", "condition_name", "find", "match"]


def match(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """The entries that one condition matches; see ``tree.select``.

    Returns:
        The entries, a tied leaf once, and whether the condition is of a form that names one: an
        exact path, or a lambda that returns one node.

    Raises:
        TypeError: if ``what`` is not a condition.
        LookupError: if a path or glob matches nothing, or a function returns no node.
    """
    if isinstance(what, str):
        return by_text(survey, what)
    if isinstance(what, type):
        return _by_type(survey, what), False
    mask = as_mask(what)
    if mask is not None:
        return survey.present(survey.chart.remember(meant_by, mask)), False
    if callable(what) and not (is_module(what) or isinstance(what, nn.Module)):
        if arity(what) == 1:
            return by_lambda(survey, what)
        pairs = zip(survey.chart.first, survey.leaves, strict=True)
        found = [e for e, leaf in pairs if leaf is not None and what(e.path, leaf)]
        return found, False
    raise TypeError(
        f"cannot select by {shown(what)}. Give a dotted path 'encoder.weight', a glob '**.bias', a "
        f"role such as 'trainable', a class, lambda tree: tree.encoder.weight, "
        f"lambda path, leaf: leaf.ndim == 2, or a mask, which is a tree of bools"
    )


def find(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """As ``match``, but an error if nothing is found.

    Raises:
        LookupError: if nothing is found.
    """
    found, single = match(survey, what)
    if not found:
        name = condition_name(what)
        entries = survey.chart.entries
        classes = {entry.cls for entry in entries if entry.is_module}
        held = ", ".join(sorted({cls.__name__ for cls in classes})) or "no class"
        raise LookupError(
            f"select: nothing in {type(survey.tree).__name__} matches {name}; it has "
            f"{len(survey.leaves)} leaves and modules of {held}{_lifted_hint(what, classes)}"
        )
    return found, single


def _lifted_hint(what: Any, classes: set[Any]) -> str:
    """What to write where the class of a lifted module is meant."""
    lifted = {cls.__name__ for cls in classes if "_blueprint" in cls.__layout__.fields}
    if not (isinstance(what, type) and what.__name__ in lifted):
        return ""
    return (
        f". A lifted {what.__name__} has a class of its own: select by "
        f"bridge.lifted_type(torch.nn.{what.__name__})"
    )


def condition_name(what: Any) -> str:
    """What to call a condition in an error message."""
    return getattr(what, "__name__", None) or repr(as_mask(what) or what)


def _by_type(survey: Survey, cls: type) -> list[Entry]:
    chart = survey.chart
    if cls is Parameter or cls is Buffer:
        return survey.present(chart.remember(of_role, cls.__name__.lower()))
    if issubclass(cls, Tensor):
        return [
            e for e, leaf in zip(chart.first, survey.leaves, strict=True) if isinstance(leaf, cls)
        ]
    nodes = [entry for entry in chart.entries if entry.cls is not None]
    if hasattr(cls, "__layout__"):
        classes = {entry.cls for entry in nodes}  # few: ask each once
        meant = {c for c in classes if issubclass(c, cls)}
        return chart.distinct([entry for entry in nodes if entry.cls in meant])
    pairs = zip(nodes, survey.values(nodes), strict=True)
    found = [entry for entry, value in pairs if isinstance(value, cls)]
    around = [c for c in containers(survey.tree, survey) if isinstance(c.value, cls)]
    return chart.distinct(in_order([*around, *found]) if around else found)


def arity(function: Callable[..., Any]) -> int:
    """How many arguments a function takes."""
    code = getattr(function, "__code__", None)
    if code is None or inspect.ismethod(function):
        try:
            return len(inspect.signature(function).parameters)
        except ValueError:
            raise TypeError(
                f"cannot tell how many arguments {function!r} takes; wrap it: "
                f"lambda path, leaf: ..."
            ) from None
    return int(code.co_argcount)
