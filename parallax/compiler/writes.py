"""What a compiled function writes into the lists and dicts that it is given.

Arguments are taken apart outside of the compiled code and put together inside, so the function gets
copies of the caller's lists. While dynamo traces, it is found which copies end with other contents.
These contents are returned with the result, and written into the caller's lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from parallax.core.nodes import NODES
from parallax.core.structure import Structure

__all__ = ["Written", "containers", "has_containers", "note", "put_back", "spell_written"]


class Written(NamedTuple):
    """Which containers a trace has written to.

    Attributes:
        indices: of the containers among those of a call.
        same: triples of a position in ``indices``, a key of the contents, and the index of the
            container that stands there: it is the caller's own.
    """

    indices: tuple[int, ...]
    same: tuple[tuple[int, Any, int], ...]


# -- eager ------------------------------------------------------------------------------------


def has_containers(tokens: Sequence[Any]) -> bool:
    """Whether there is anything among the arguments that could be written to."""
    return any(
        type(token) is tuple and len(token) > 1 and (token[0] in (list, dict) or token[0] in NODES)
        for token in tokens[2:]
        if type(token) is not Structure
    )


def put_back(
    written: Written, contents: Sequence[Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Gives the caller's lists and dicts the contents that a call has left in its own.

    Raises:
        TypeError: if a container is given twice, or one of a registered class was written to.
    """
    found = containers((*args, *kwargs.values()), [])
    for index in written.indices:
        one = found[index]
        if type(one) not in (list, dict):
            raise TypeError(
                f"a compiled function writes into a {type(one).__name__} that it is given, which "
                f"it gets a copy of; return a new {type(one).__name__} instead"
            )
        if sum(other is one for other in found) > 1:
            raise TypeError(
                f"a compiled function writes into a {type(one).__name__} that is given to it in "
                f"two places, which it cannot tell are one; give it once"
            )
    for nth, position, index in written.same:
        contents[nth][position] = found[index]
    for index, now in zip(written.indices, contents, strict=True):
        one = found[index]
        if type(one) is list:
            one[:] = now
        else:
            one.clear()
            one.update(now)


# -- eager and traced -------------------------------------------------------------------------


def containers(value: Any, found: list[Any]) -> list[Any]:
    """All in a value that could be written to, outer ones first, appended to ``found``."""
    cls = type(value)
    if hasattr(cls, "__layout__"):
        return found
    if cls is list or cls is dict:
        found.append(value)
    elif cls in NODES:
        found.append(value)
        value = list(NODES[cls].flatten(value)[0])
    elif not isinstance(value, tuple):
        return found
    for inner in value.values() if isinstance(value, dict) else value:
        containers(inner, found)
    return found


# -- traced -----------------------------------------------------------------------------------


def note(args: Any, kwargs: Any) -> list[tuple[Any, list[Any]]]:
    """The containers among the arguments, each with what it holds now."""
    return [(one, _contents(one)) for one in containers((*args, *kwargs.values()), [])]


def spell_written(
    noted: list[tuple[Any, list[Any]]], spell: Callable[[Any], None]
) -> tuple[tuple[int, ...], tuple[tuple[int, Any, int], ...]]:
    """Has ``spell`` take apart what was written to; returns what ``Written`` holds."""
    indices: list[int] = []
    same: list[tuple[int, Any, int]] = []
    for index, (one, before) in enumerate(noted):
        if not _differ(_contents(one), before):
            continue
        now: Any = dict(one) if type(one) is dict else list(one) if type(one) is list else []
        for key in list(now) if type(one) is dict else range(len(now)):
            for other, (known, _) in enumerate(noted):
                if now[key] is known:
                    same.append((len(indices), key, other))
                    now[key] = None
        spell(now)
        indices.append(index)
    return tuple(indices), tuple(same)


def _contents(one: Any) -> list[Any]:
    if type(one) is dict:
        return [*one.keys(), *one.values()]
    if type(one) is list:
        return list(one)
    return _leaves(list(NODES[type(one)].flatten(one)[0]))


def _leaves(values: Any) -> list[Any]:
    """What is in the children of a node, which may put them into new containers every time."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _leaves(value)
        elif type(value) is dict:
            found += _leaves(list(value.values()))
        else:
            found.append(value)
    return found


def _differ(now: list[Any], before: list[Any]) -> bool:
    if len(now) != len(before):
        return True
    for a, b in zip(now, before, strict=True):
        if isinstance(a, (int, float, str, bool)):
            if type(a) is not type(b) or a != b:
                return True
        elif a is not b:
            return True
    return False
