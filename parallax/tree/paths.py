"""What a text means in a tree: a dotted path, a glob, a role, or a name of the state dict."""

from __future__ import annotations

import difflib
import re
from typing import NoReturn

from parallax._compat.dynamo import constant_in_traces
from parallax.tree.around import containers
from parallax.tree.chart import Chart, Entry
from parallax.tree.places import Survey
from parallax.tree.state_names import state_names

__all__ = ["ROLES", "by_text", "in_order", "matching", "of_role"]

ROLES = ("parameter", "buffer", "trainable", "frozen")


def by_text(survey: Survey, text: str) -> tuple[list[Entry], bool]:
    """The entries that a text names, and whether it is the path of one; see ``match``.

    Raises:
        LookupError: if it names none; the message names what is written alike.
    """
    if text in ROLES:
        return survey.present(survey.chart.remember(of_role, text)), False
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
            found = in_order([*[around[k] for k in meant], *found])
        found = found or survey.present(survey.chart.remember(_of_glob_of_names, text))
    if not found:
        _nothing(survey, text)
    return found, False


def _of_state_name(chart: Chart, name: str) -> tuple[Entry, ...]:
    found = chart.remember(state_names).get(name)
    return () if found is None else (found,)


def of_role(chart: Chart, role: str) -> list[Entry]:
    """The leaves of a role, a tied one once."""
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
    return chart.distinct(in_order([named[names[k]] for k in matching(glob, tuple(names))]))


def _only_leaves(glob: str) -> bool:
    return glob == "**" or glob.endswith(".**")


def in_order(entries: list[Entry]) -> list[Entry]:
    """The entries in preorder: a node before what it holds."""
    return sorted(entries, key=lambda e: (e.start, -e.stop, len(e.path)))


@constant_in_traces
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
    raise LookupError(
        f"select: nothing in {type(survey.tree).__name__} is at {text!r}. {word}: {listed}"
    )


@constant_in_traces
def _close(text: str, paths: list[str]) -> list[str]:
    """The paths that are written alike; dynamo does not trace how they are found."""
    return difflib.get_close_matches(text, paths, n=5, cutoff=0.4)


def _close_names(chart: Chart, text: str) -> tuple[str, ...]:
    """The paths of what has a name in the state dict that is written alike."""
    named = chart.remember(state_names)
    return tuple([named[name].path for name in _close(text, list(named))])
