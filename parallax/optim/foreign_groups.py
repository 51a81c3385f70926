"""What a stateful optimizer changes in its groups, beside what it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Group", "changes"]


class Group(dict[str, Any]):
    """A group that knows what was written into it.

    What is written belongs to the state, also where it is the value from before: else what a state
    holds would depend on numbers, and a compiled step could not return it.
    """

    def __init__(self, group: Mapping[str, Any]) -> None:
        super().__init__(group)
        self.written: set[str] = set()

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __setitem__(self, name: str, value: Any) -> None:
        self.written.add(name)
        super().__setitem__(name, value)

    def setdefault(self, name: str, default: Any = None, /) -> Any:
        """The value of that name, which is the default if there was none."""
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **values: Any) -> None:
        """Writes several values."""
        for name, value in dict(*args, **values).items():
            self[name] = value


def changes(group: Any, fresh: Mapping[str, Any]) -> dict[str, Any]:
    """What was written into a group, or is not as in that of a new optimizer."""
    written = group.written if isinstance(group, Group) else ()
    return {
        name: value
        for name, value in group.items()
        if name != "params" and (name in written or not _same(value, fresh.get(name, _NEW)))
    }


_NEW = object()


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(two, Tensor):
        return one is two or (type(one) is type(two) and bool(torch.equal(one, two)))
    return type(one) is type(two) and bool(one == two)
