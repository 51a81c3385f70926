"""Remembers the attributes of a skeleton's modules, and restores them after a call.

To look through all attributes after each call would take a twentieth of a small model's time. It is
done after calls that may have set one: ``nn.Module`` asks the table of parameters first, so the
tables of ``tables`` notice; modules without such tables, and those with code that writes past
``nn.Module``, are always looked through.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from operator import is_, itemgetter
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

__all__ = ["Memory", "containers"]

_CONTAINERS = (list, dict, set, OrderedDict, defaultdict, Counter, deque)
_PAST_MODULE = frozenset({"__dict__", "__setattr__", "__delattr__", "vars"})


class Memory:
    """Remembers modules.

    Args:
        nodes: the modules.
        own: for each the names of the attributes that it was given.
        foreign: the ``id`` of objects among these that are not the skeleton's own.
        touched: where tables note that they are not as they were.
        watched: the modules with such tables.
    """

    def __init__(
        self,
        nodes: list[Any],
        own: list[tuple[str, ...]],
        foreign: set[int],
        touched: list[Any],
        watched: set[int],
    ) -> None:
        self.nodes = nodes
        self.attributes = [vars(node) for node in nodes]
        self.pristine = [dict(attributes) for attributes in self.attributes]
        self.touched = touched
        self.always = any(
            id(node) not in watched or _writes_past(type(node), vars(node)) for node in nodes
        )
        self.getters = [itemgetter("training", "_modules", *names) for names in own]
        self.lengths = [*map(len, self.attributes)]
        self.seen = self._look()
        tables = [a[name] for a in self.attributes for name in ("_parameters", "_modules")]
        self.tables = [t for t in tables if type(t) is dict] + [
            a["_buffers"] for a in self.attributes
        ]
        self.rows = [dict(table) for table in self.tables]
        self.row_counts = [*map(len, self.tables)]
        self.containers, self.contents = _remembered(self.attributes, own, foreign)
        self.counts = self._holders()
        self.shares = [*map(sys.getrefcount, self.containers)]

    def restore(self, unbind: Callable[[], None]) -> bool:
        """Restores what was there before, unless a part is still referenced.

        Args:
            unbind: drops the leaves.

        Returns:
            Whether the modules can serve another call.
        """
        if self._holders() != self.counts:
            written = [dict(attributes) for attributes in self.attributes]
            rows = [dict(table) for table in self.tables]
            self._undo()  # what was written may have held modules
            if self._holders() != self.counts:
                _refill([*self.attributes, *self.tables], [*written, *rows])
                return False
        unbind()
        if self.touched or self.always or [*map(len, self.attributes)] != self.lengths:
            touched = [*self.touched]
            self.touched.clear()
            if not all([table.renew() for table in touched]):
                return False
            if not self._is_as_seen():
                self._undo()
        if [*map(len, self.tables)] != self.row_counts:
            _refill(self.tables, self.rows)
        if [*map(sys.getrefcount, self.containers)] != self.shares:
            return False  # somebody holds one: it was returned
        for container, content in zip(self.containers, self.contents, strict=True):
            if not _unchanged(container, content):
                _refill([container], [content])
        return True

    def _holders(self) -> list[int]:
        """How many references there are to each module."""
        return [*map(sys.getrefcount, self.nodes)]

    def _look(self) -> list[Any]:
        """What shows whether attributes were written: their values."""
        try:
            found = [get(now) for get, now in zip(self.getters, self.attributes, strict=True)]
        except KeyError:
            return []
        return [*chain.from_iterable(found)]

    def _is_as_seen(self) -> bool:
        now = self._look()
        return (
            len(now) == len(self.seen)
            and all(map(is_, now, self.seen))
            and [*map(len, self.attributes)] == self.lengths
            and all(
                all(map(is_, table.values(), row.values()))
                for table, row in zip(self.tables, self.rows, strict=True)
            )
        )

    def _undo(self) -> None:
        """Makes attributes what they were, apart from those that tables show."""
        for now, before in zip(self.attributes, self.pristine, strict=True):
            tables = (before["_parameters"], before["_modules"])
            shown = [name for table in tables for name in getattr(table, "names", ())]
            kept = {name: now[name] for name in shown if name in now}
            now.clear()
            now.update(before)
            for name in shown:
                if name not in kept:
                    del now[name]
            now.update(kept)
        _refill(self.tables, self.rows)


def _refill(containers: list[Any], contents: list[Any]) -> None:
    """Makes containers what they were."""
    for container, content in zip(containers, contents, strict=True):
        container.clear()
        (container.extend if isinstance(container, (list, deque)) else container.update)(content)


def _unchanged(container: Any, content: Any) -> bool:
    """Whether a container holds the same objects as before."""
    if len(container) != len(content) or isinstance(container, set):
        return len(container) == len(content) == 0
    if isinstance(container, dict) and not all(map(is_, container.values(), content.values())):
        return False
    return all(map(is_, container, content))


def _remembered(
    attributes: list[dict[str, Any]], own: list[tuple[str, ...]], foreign: set[int]
) -> tuple[list[Any], list[Any]]:
    """The containers among attributes, and copies of them."""
    held = [a[name] for a, names in zip(attributes, own, strict=True) for name in names]
    found = list({id(value): value for value in containers(held, foreign)}.values())
    return found, [value.copy() for value in found]


def containers(values: Iterable[Any], foreign: set[int]) -> Iterator[Any]:
    """The containers among values, and those within them.

    Args:
        values: of attributes.
        foreign: the ``id`` of objects that are not looked into.

    Yields:
        Lists, dicts and the like; of an object that was made anew for these modules, because it
        leads to one of them, the dict of its attributes.
    """
    for value in values:
        cls = type(value)
        if cls in _CONTAINERS:
            yield value
            yield from containers(value.values() if isinstance(value, dict) else value, foreign)
        elif cls in (tuple, frozenset):
            yield from containers(value, foreign)
        elif _is_plain_object(value) and id(value) not in foreign:
            yield vars(value)


def _is_plain_object(value: Any) -> bool:
    others = (type, nn.Module, Tensor, FunctionType, MethodType, partial)
    return hasattr(value, "__dict__") and not isinstance(value, others)


# -- code that writes past nn.Module --------------------------------------------------------------


def _writes_past(cls: type, attributes: dict[str, Any]) -> bool:
    """Whether code of a module may write attributes in another way than ``nn.Module`` does."""
    return _class_writes_past(cls) or any(
        _code_writes_past(value) for value in attributes.values() if callable(value)
    )


_writing_past: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # classes come and go


def _class_writes_past(cls: type) -> bool:
    found = _writing_past.get(cls)
    if found is None:
        found = _writing_past[cls] = _find_writing_past(cls)
    return found


def _find_writing_past(cls: type) -> bool:
    lookup: Any = cls
    if lookup.__setattr__ is not nn.Module.__setattr__:
        return True
    bases = [base for base in cls.__mro__ if not base.__module__.startswith("torch.nn.")]
    return any(_code_writes_past(value) for base in bases for value in vars(base).values())


def _code_writes_past(value: Any) -> bool:
    function = getattr(value, "fget", None) or getattr(value, "__func__", value)
    code = getattr(function, "__code__", None)
    stack = [code] if isinstance(code, CodeType) else []
    while stack:
        part = stack.pop()
        if not _PAST_MODULE.isdisjoint(part.co_names):
            return True
        stack += [const for const in part.co_consts if isinstance(const, CodeType)]
    return False
