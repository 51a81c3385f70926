"""From what a user writes to the nodes and leaves meant: paths, globs, types, functions, roles."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor

from parallax._compat import dynamo
from parallax.fields import Buffer, Parameter
from parallax.nodes import is_module
from parallax.tree import core
from parallax.tree.places import Entry, Survey, follow

__all__ = ["ROLES", "find", "match"]

ROLES = ("parameter", "buffer", "trainable", "frozen")


def match(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """The entries that one condition means; see ``tree.select``.

    Returns:
        The entries, a tied leaf once, and whether the condition is of a form that names one: an
        exact path, or a lambda that returns one node.

    Raises:
        TypeError: if ``what`` is no condition.
        LookupError: if a path or glob matches nothing, or a function returns no node.
    """
    if isinstance(what, str):
        return _by_text(survey, what)
    if isinstance(what, type):
        return _by_type(survey, what), False
    if callable(what) and not is_module(what):
        if _arity(what) == 1:
            return _by_lambda(survey, what)
        found = [e for e in survey.first if e.value is not None and what(e.path, e.value)]
        return found, False
    raise TypeError(
        f"cannot select by {what!r}. Give a dotted path 'encoder.weight', a glob '**.bias', a "
        f"role such as 'trainable', a class, lambda tree: tree.encoder.weight, or "
        f"lambda path, leaf: leaf.ndim == 2"
    )


def find(survey: Survey, what: Any) -> tuple[list[Entry], bool]:
    """As ``match``, and something must be found.

    Raises:
        LookupError: if nothing is.
    """
    found, single = match(survey, what)
    if not found:
        name = getattr(what, "__name__", None) or repr(what)
        held = sorted({type(e.value).__name__ for e in survey.entries if e.kind == "module"})
        raise LookupError(
            f"select: nothing in {_name(survey)} matches {name}; it has {len(survey.first)} "
            f"leaves and modules of {', '.join(held) or 'no class'}"
        )
    return found, single


def _name(survey: Survey) -> str:
    return type(survey.tree).__name__


# -- paths, globs, roles --------------------------------------------------------------------------


def _by_text(survey: Survey, text: str) -> tuple[list[Entry], bool]:
    if text in ROLES:
        return [entry for k, entry in enumerate(survey.first) if _has_role(survey, k, text)], False
    for entry in survey.entries:
        if entry.path == text:
            return [entry], True
    pattern = text.split(".")
    found = []
    if "*" in text or "?" in text:
        only_leaves = pattern[-1] == "**"
        found = [
            entry
            for entry in survey.entries
            if entry.value is not None
            and (entry.kind == "leaf" or not only_leaves)
            and _glob(pattern, entry.path.split(".") if entry.path else [])
        ]
    if not found:
        _nothing(survey, text)
    return found, False


def _has_role(survey: Survey, index: int, role: str) -> bool:
    entry = survey.first[index]
    if entry.value is None:
        return False
    if role == "frozen":
        return index in survey.frozen
    if role == "trainable":
        return entry.role == "parameter" and index not in survey.frozen
    return entry.role == role


def _nothing(survey: Survey, text: str) -> NoReturn:
    paths = [entry.path for entry in survey.entries if entry.path]
    near = difflib.get_close_matches(text, paths, n=5, cutoff=0.4)
    last = text.rsplit(".", maxsplit=1)[-1]
    near += [p for p in paths if p.split(".")[-1] == last and p not in near][:3]
    listed = ", ".join(near or paths[:5]) or "nothing, the tree is empty"
    word = "Near misses" if near else "It holds"
    raise LookupError(f"select: nothing in {_name(survey)} is at {text!r}. {word}: {listed}")


def _glob(pattern: list[str], names: list[str]) -> bool:
    """Whether the segments of a glob match those of a path; ``**`` is any number of segments."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        rest = pattern[1:]
        return any(_glob(rest, names[k:]) for k in range(len(names) + 1))
    return bool(names) and _segment(pattern[0], names[0]) and _glob(pattern[1:], names[1:])


def _segment(pattern: str, name: str) -> bool:
    """Whether one segment matches: ``*`` is any text, ``?`` any character."""
    if pattern == "*":
        return True
    if "*" not in pattern and "?" not in pattern:
        return pattern == name
    p = n = mark = 0
    star = -1
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, mark, p = p, n, p + 1
        elif p < len(pattern) and pattern[p] in ("?", name[n]):
            p, n = p + 1, n + 1
        elif star >= 0:  # let the last star take one character more
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(rest == "*" for rest in pattern[p:])


# -- types and functions --------------------------------------------------------------------------


def _by_type(survey: Survey, cls: type) -> list[Entry]:
    if cls is Parameter or cls is Buffer:
        return [e for e in survey.first if e.role == cls.__name__.lower() and e.value is not None]
    if issubclass(cls, Tensor):
        return [e for e in survey.first if isinstance(e.value, cls)]
    return [e for e in survey.entries if e.kind != "leaf" and isinstance(e.value, cls)]


def _arity(function: Callable[..., Any]) -> int:
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


class _Mark:
    """Stands for a leaf while a user's lambda walks the tree."""

    def __init__(self, index: int, path: str) -> None:
        self.index = index
        self.path = path


def _marked(survey: Survey) -> Any:
    marks = [_Mark(k, entry.path) for k, entry in enumerate(survey.first)]
    return core.unflatten(survey.spec, marks)


def _by_lambda(survey: Survey, where: Callable[[Any], Any]) -> tuple[list[Entry], bool]:
    """Calls a lambda on a copy with a mark per leaf, so that nothing depends on values."""
    marked = _marked(survey)
    try:
        result = where(marked)
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"select: a function of one argument gets the tree and returns nodes of it, without "
            f"looking at values: {error}. A predicate takes two: lambda path, leaf: leaf.ndim == 2"
        ) from error
    items = [item for _, item in core.items_with_paths(marked)]
    single = not isinstance(result, list) and (
        not isinstance(result, tuple) or _entry_of(survey, items, result) is not None
    )
    found = []
    for node in [result] if single else result:
        if isinstance(node, _Mark):
            found.append(survey.first[node.index])
            continue
        entry = _entry_of(survey, items, node)
        if entry is None:
            raise LookupError(
                f"select: the function returned {node!r}, which is neither a leaf, a module nor a "
                f"container of {_name(survey)}. Constants are changed by module.replace(name=...)"
            )
        found.append(entry)
    return found, single


def _entry_of(survey: Survey, items: list[Any], node: Any) -> Entry | None:
    if isinstance(node, tuple) and not node:
        return None  # every empty tuple is one object
    for entry in survey.entries:
        alike = entry.kind != "leaf" and type(entry.value) is type(node)
        if alike and _is(follow(items[entry.item], entry.keys), node):
            return entry
    return None


def _is(one: Any, two: Any) -> bool:
    """Whether two nodes are one object; dynamo knows that of tuples by their items only."""
    if isinstance(one, tuple) and dynamo.is_compiling():
        same_length = type(one) is type(two) and len(one) == len(two)
        return same_length and all(_is(a, b) for a, b in zip(one, two))  # noqa: B905  # dynamo traces no strict=
    return one is two
