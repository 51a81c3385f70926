"""New items before or after others in tuples and lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallax.core.frozendict import FrozenDict
from parallax.tree.around import entry_at
from parallax.tree.chart import Entry
from parallax.tree.freeze import marked_as
from parallax.tree.places import Survey
from parallax.tree.rebuild import rebuild

__all__ = ["inserted"]


def inserted(
    what: str,
    survey: Survey,
    entries: Sequence[Entry],
    values: Sequence[Any],
    shift: int,
    copy: Callable[[Any], Any],
) -> Any:
    """The tree with new items beside some items of tuples and lists.

    Args:
        what: the call, for error messages.
        survey: of the tree.
        entries: the items.
        values: the new items, in their order; further entries get copies of them.
        shift: 0 to insert before each item, 1 for after.
        copy: makes a copy of a new item.

    Raises:
        TypeError: if an item stands in no tuple or list.
    """
    wanted: dict[str, dict[int, list[Any]]] = {}  # per container and index what is put there
    for number, entry in enumerate(entries):
        above, _, key = entry.path.rpartition(".")
        _check_place(what, survey, entry, above)
        fresh = [copy(value) for value in values] if number else list(values)
        wanted.setdefault(above, {})[int(key) + shift] = fresh
    here = survey
    # What lies deepest first, so that the paths of the others stay.
    for path in sorted(wanted, key=lambda path: path.count(".") + bool(path), reverse=True):
        above_entry = entry_at(here, path)
        held = here.values([above_entry])[0]
        items: list[Any] = []
        for index in range(len(held) + 1):
            items += [*wanted[path].get(index, ()), *held[index : index + 1]]
        made = type(held)(items)
        here = Survey(rebuild(here, [(place, made) for place in _places(here, above_entry)]))
    return marked_as(survey, here.tree)


def _places(survey: Survey, container: Entry) -> list[Entry]:
    """The places of a container: several if the module around it stands in several."""
    entries = survey.chart.entries
    around = [one for one in entries if one.is_module and one.holds(container)]
    if container.item < 0 or not around:
        return [container]
    below = container.keys[len(around[-1].keys) :]
    wanted = {(twin.item, (*twin.keys, *below)) for twin in survey.chart.twins(around[-1])}
    return [one for one in entries if (one.item, one.keys) in wanted]


def _check_place(what: str, survey: Survey, entry: Entry, above: str) -> None:
    """Raises unless an entry is an item of a tuple or list."""
    if not entry.path:
        raise TypeError(
            f"{what}: the root stands in no tuple or list. Select an item of one, such as "
            f"'layers.0'"
        )
    held = survey.values([entry_at(survey, above)])[0]
    if type(held) in (tuple, list):
        return
    if isinstance(held, (dict, FrozenDict)):
        raise TypeError(
            f"{what}: {entry.path} stands in a dict, which has names and no places. Write "
            f"tree.select(model, {above!r}).apply(lambda held: {{**held, 'name': new}})"
        )
    raise TypeError(
        f"{what}: {entry.path} stands in a {type(held).__name__}, whose fields are fixed. Select "
        f"an item of a tuple or list, or wrap it: "
        f"tree.select(model, {entry.path!r}).apply(lambda old: nn.Sequential(new, old))"
    )
