"""Selecting within what is selected already."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from parallax.tree.around import entry_at
from parallax.tree.chart import Entry
from parallax.tree.masks import as_mask
from parallax.tree.match import arity, match
from parallax.tree.outside import join
from parallax.tree.paths import ROLES
from parallax.tree.places import Survey

__all__ = ["refined"]


def refined(survey: Survey, within: Sequence[Entry], what: Any) -> tuple[list[Entry], bool]:
    """The entries at or below some others that one condition matches.

    Args:
        survey: of the tree.
        within: the selected entries.
        what: a condition; a path or glob goes on from each of them, and a function of one argument
            gets each; others are asked of the whole tree.

    Returns:
        The entries, and whether the condition is of a form that names one.
    """
    if isinstance(what, str) and what not in ROLES:
        pairs = [_by_text(survey, entry, what) for entry in within]
    elif _is_function_of_a_tree(what):
        pairs = [_by_function(survey, entry, what) for entry in within]
    else:
        everywhere = match(survey, what)[0]
        return [entry for entry in everywhere if _is_within(survey, entry, within)], False
    found = [entry for entries, _ in pairs for entry in entries]
    return survey.chart.distinct(found), all([single for _, single in pairs])


def _is_function_of_a_tree(what: Any) -> bool:
    if isinstance(what, type) or not callable(what) or as_mask(what) is not None:
        return False
    return arity(what) == 1


def _by_text(survey: Survey, entry: Entry, text: str) -> tuple[list[Entry], bool]:
    path = join(entry.path, text)
    if any([mark in text for mark in "*?["]):
        path = join(re.sub(r"([*?[])", r"[\1]", entry.path), text)
    try:
        return match(survey, path)
    except LookupError:  # other selected nodes may have it
        return [], True


def _by_function(survey: Survey, entry: Entry, function: Any) -> tuple[list[Entry], bool]:
    inner = Survey(survey.values([entry])[0])
    found, single = match(inner, function)
    return [entry_at(survey, join(entry.path, other.path)) for other in found], single


def _is_within(survey: Survey, entry: Entry, within: Sequence[Entry]) -> bool:
    places = [entry] if entry.item < 0 else survey.chart.twins(entry)
    return any([one.holds(place) for one in within for place in places])
