"""Finds the nodes and leaves that a condition matches: a path, glob, role, type, mask, function."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from parallax._compat import dynamo
from parallax._compat.dynamo import constant_in_traces
from parallax._errors.arguments import shown
from parallax.core.fields import Buffer, Parameter
from parallax.core.nodes import is_module
from parallax.tree.around import containers
from parallax.tree.chart import Chart, Entry
from parallax.tree.lambdas import by_lambda
from parallax.tree.masks import as_mask, meant_by
from parallax.tree.places import Survey
from parallax.tree.state_names import state_names

__all__ = ["ROLES", "arity", "condition_name", "find", "match", "matching"]

ROLES = ("parameter", "buffer", "trainable", "frozen")


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
        return _by_text(survey, what)
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
        held = sorted({cls.__name__ for cls in classes})
        raise LookupError(
            f"select: nothing in {_name(survey)} matches {name}; it has {len(survey.leaves)} "
            f"leaves and modules of {', '.join(held) or 'no class'}{_lifted_hint(what, classes)}"
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


def _name(survey: Survey) -> str:
    return type(survey.tree).__name__


# -- paths, globs, roles --------------------------------------------------------------------------


def _by_text(survey: Survey, text: str) -> tuple[list[Entry], bool]:
    if text in ROLES:
        return survey.present(survey.chart.remember(_of_role, text)), False
    entry = survey.at(text)
    if entry is not None:
        return [entry], True
    around = containers(survey.tree, survey)
    for container in around:
        if container.path == text:
            return [container], True
    by_name = survey.chart.remember(_of_state_name, text)
    if by_name:
        return [by_name[0]], True
    found: list[Entry] = []
    if any([mark in text for mark in "*?["]):
        found = survey.present(survey.chart.remember(_of_glob, text))
        if around and not _only_leaves(text):
            meant = matching(text, tuple([container.path for container in around]))
            found = _in_order([*[around[k] for k in meant], *found])
        found = found or survey.present(survey.chart.remember(_of_glob_of_names, text))
    if not found:
        _nothing(survey, text)
    return found, False


def _of_state_name(chart: Chart, name: str) -> tuple[Entry, ...]:
    found = chart.remember(state_names).get(name)
    return () if found is None else (found,)


def _of_role(chart: Chart, role: str) -> list[Entry]:
    if role == "frozen":
        return [entry for entry in chart.first if entry.leaf in chart.frozen]
    if role == "trainable":
        parameters = [entry for entry in chart.first if entry.role == "parameter"]
        return [entry for entry in parameters if entry.leaf not in chart.frozen]
    return [entry for entry in chart.first if entry.role == role]


def _of_glob(chart: Chart, glob: str) -> list[Entry]:
    entries = [e for e in chart.entries if e.cls is None or not _only_leaves(glob)]
    meant = matching(glob, tuple([entry.path for entry in entries]))
    return chart.distinct([entries[k] for k in meant])


def _of_glob_of_names(chart: Chart, glob: str) -> list[Entry]:
    """What a glob matches by the names of the state dict, ``*.weight`` of a ``Sequential`` say."""
    named = chart.remember(state_names)
    names = [name for name in named if named[name].cls is None or not _only_leaves(glob)]
    return chart.distinct(_in_order([named[names[k]] for k in matching(glob, tuple(names))]))


def _only_leaves(glob: str) -> bool:
    return glob == "**" or glob.endswith(".**")


def _in_order(entries: list[Entry]) -> list[Entry]:
    """The entries in preorder: a node before what it holds."""
    return sorted(entries, key=lambda e: (e.start, -e.stop, len(e.path)))


@dynamo.constant_in_traces
def matching(glob: str, paths: tuple[str, ...]) -> tuple[int, ...]:
    """Which of some paths a glob matches, segment by segment.

    Args:
        glob: segments in which ``*`` is any text, ``?`` any character, ``[ab]`` one of some and
            ``[!ab]`` any other, or that are ``**``: any number of segments.
        paths: dotted paths.

    Returns:
        The indices of those that match.
    """
    matches = re.compile("".join(map(_segment, glob.split(".")))).fullmatch
    # A dot after each segment, so that any number of them is a repetition.
    return tuple([k for k, path in enumerate(paths) if matches(f"{path}." if path else "")])


def _segment(glob: str) -> str:
    """The regular expression of one segment and the dot after it."""
    if glob == "**":
        return r"(?:[^.]*\.)*"
    return _PIECES.sub(_piece, glob) + r"\."


_PIECES = re.compile(r"\[(!?)([^]]+)\]|.", re.DOTALL)
_WILD = {"*": "[^.]*", "?": "[^.]"}


def _piece(match: re.Match[str]) -> str:
    """The regular expression of one character, or of a set of them: ``[qkv]``."""
    if match[2] is None:
        return _WILD.get(match[0]) or re.escape(match[0])
    return f"[{'^.' if match[1] else ''}{re.escape(match[2])}]"


def _nothing(survey: Survey, text: str) -> NoReturn:
    entries = [*containers(survey.tree, survey), *survey.chart.entries]
    paths = [entry.path for entry in entries if entry.path]
    near = _close(text, paths)
    near += [path for path in survey.chart.remember(_close_names, text) if path not in near]
    last = text.rsplit(".", maxsplit=1)[-1]
    near += [p for p in paths if p.split(".")[-1] == last and p not in near][:3]
    listed = ", ".join(near or paths[:5]) or "nothing, the tree is empty"
    word = "Near misses" if near else "It holds"
    raise LookupError(f"select: nothing in {_name(survey)} is at {text!r}. {word}: {listed}")


@constant_in_traces
def _close(text: str, paths: list[str]) -> list[str]:
    """The paths that are written alike; dynamo does not trace how they are found."""
    return difflib.get_close_matches(text, paths, n=5, cutoff=0.4)


def _close_names(chart: Chart, text: str) -> tuple[str, ...]:
    """The paths of what has a name in the state dict that is written alike."""
    named = chart.remember(state_names)
    return tuple([named[name].path for name in _close(text, list(named))])


# -- types and functions --------------------------------------------------------------------------


def _by_type(survey: Survey, cls: type) -> list[Entry]:
    chart = survey.chart
    if cls is Parameter or cls is Buffer:
        return survey.present(chart.remember(_of_role, cls.__name__.lower()))
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
    return chart.distinct(_in_order([*around, *found]) if around else found)


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
