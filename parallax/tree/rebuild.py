"""Other nodes in a tree: each module on the way is remade by ``replace``, with its checks."""

from __future__ import annotations

from typing import Any

from parallax.core.containers import changed
from parallax.core.nodes import is_module
from parallax.tree import core
from parallax.tree.around import put
from parallax.tree.chart import Entry
from parallax.tree.places import Survey, follow

__all__ = ["rebuild"]


def rebuild(survey: Survey, edits: list[tuple[Entry, Any]]) -> Any:
    """The tree with some nodes and leaves replaced; the values of the edits hold none another.

    Raises:
        TypeError: if the annotation of a field does not allow a value.
    """
    items = list(survey.items)
    for number, item in enumerate(items):
        here = {entry.keys: value for entry, value in edits if entry.item == number}
        if here:
            items[number] = _replaced(item, here)
    made = core.with_items(survey.spec, items)
    for entry, value in edits:
        if entry.item < 0:
            made = put(made, entry.keys, value)
    return made


def _replaced(node: Any, edits: dict[tuple[Any, ...], Any]) -> Any:
    if () in edits:
        return edits[()]
    below: dict[Any, dict[tuple[Any, ...], Any]] = {}
    for keys, value in edits.items():
        below.setdefault(keys[0], {})[keys[1:]] = value
    edited = {key: _replaced(follow(node, (key,)), inner) for key, inner in below.items()}
    return node.replace(**edited) if is_module(node) else changed(node, edited)
