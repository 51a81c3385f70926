"""``functools.cached_property`` for modules, without the lock that it has on Python 3.11."""

from __future__ import annotations

from functools import cached_property
from typing import Any

__all__ = ["Cached", "without_locks"]


class Cached(cached_property[Any]):
    """A cached property that a traced function can fill; dynamo does not trace a lock.

    Two threads may both compute the value, as in later releases of Python.
    """

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """The value, computed when it is first read."""
        if instance is None:
            return self
        held = instance.__dict__
        if self.attrname not in held:
            held[self.attrname] = self.func(instance)
        return held[self.attrname]


def without_locks(namespace: dict[str, Any]) -> None:
    """Replaces the cached properties of a class body."""
    for name, value in namespace.items():
        if type(value) is cached_property:
            namespace[name] = Cached(value.func)
