"""An immutable dict; a dict that is given to a child field becomes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

__all__ = ["FrozenDict"]

K = TypeVar("K")
V = TypeVar("V")


class FrozenDict(dict[K, V]):
    """A dict without its mutating methods, in insertion order.

    Example:
        >>> from parallax.core.frozendict import FrozenDict
        >>> FrozenDict(a=1)["a"]
        1
    """

    __slots__ = ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "this dict belongs to a frozen module; build a new one: "
            "module.replace(field={**module.field, key: value})"
        )

    if not TYPE_CHECKING:  # checkers want the overloads of what is refused here
        __setitem__ = __delitem__ = __ior__ = _refuse
        clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return FrozenDict, (dict(self),)

    def __copy__(self) -> FrozenDict[K, V]:
        return self
