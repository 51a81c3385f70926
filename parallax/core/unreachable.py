"""Releases module classes that no code can reach any more, as a loop or a notebook makes them.

torch's and optree's registries keep every class. It is taken out of them when all references to it
are its own and theirs: then it has no instances and no structures, and no thread is about to make
one. If one is made after all, by a method of the class for example, the class is registered again.
"""

from __future__ import annotations

import gc
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from parallax._compat import registries

__all__ = ["forget_unreachable", "remember"]

_KEPT = 8  # the latest classes of one name are not examined
_AT_ONCE = 16  # so many classes are examined when one is defined
_named: dict[str, list[weakref.ref[type]]] = {}


def remember(cls: type) -> None:
    """Notes a class that is registered."""
    _named.setdefault(_name(cls), []).append(weakref.ref(cls))


def forget_unreachable(cls: type) -> None:
    """Takes the classes out of the registries that were defined before this one under its name.

    For one thread at a time; others may make and use modules meanwhile.
    """
    name = _name(cls)
    known = _named.get(name, [])
    if len(known) > _KEPT and _counts_are_exact():
        oldest, others, latest = known[:-_KEPT][:_AT_ONCE], known[_AT_ONCE:-_KEPT], known[-_KEPT:]
        kept = [ref for ref in oldest if not _forgotten(ref)]
        _named[name] = others + kept + latest


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _counts_are_exact() -> bool:
    """Whether counts of references are exact, as they are not in Python without its lock."""
    return bool(getattr(sys, "_is_gil_enabled", bool)() or sys.version_info < (3, 13))


def _forgotten(ref: Callable[[], Any]) -> bool:
    if ref() is None:
        return True
    ref().__layout__.forget()
    if _is_reachable(ref):
        return False
    ready = ref().__ready__
    type.__setattr__(ref(), "__ready__", None)  # a call waits for this thread, and registers anew
    if _is_reachable(ref):  # since then
        type.__setattr__(ref(), "__ready__", ready)
        return False
    registries.unregister_torch_node(ref())
    registries.unregister_optree_node(ref())
    return True


def _is_reachable(ref: Callable[[], Any]) -> bool:
    """Whether there is a reference to the class that is neither its own nor a registry's."""
    # Counted first: what is its own stays so, and a reference that comes later counts as another's.
    known = _own_references(ref()) + registries.references_to_registered()
    return _references(ref) > known


def _references(ref: Callable[[], Any]) -> int:
    """How many references there are to what a weak reference stands for."""
    return sys.getrefcount(ref()) - _OF_THE_CALL


class _Sample:
    pass


_OF_THE_CALL = 0
_sample = _Sample()  # with one reference
_OF_THE_CALL = _references(weakref.ref(_sample)) - 1


def _own_references(cls: Any) -> int:
    """How many references to a class its own parts hold, of those that are known here."""
    holders = [
        cls.__mro__,
        cls.__layout__,
        *vars(cls)["__own_fields__"].values(),
        registries.functions_of(cls)[0].__globals__,
        *{id(cell): cell for cell in _cells(cls)}.values(),
    ]
    return sum([sum([part is cls for part in gc.get_referents(holder)]) for holder in holders])


def _cells(cls: Any) -> Iterator[types.CellType]:
    """The cells of methods that name the class, as ``super()`` does."""
    for value in vars(cls).values():
        for part in (value, *[getattr(value, n, None) for n in ("fget", "fset", "__func__")]):
            while isinstance(part, types.FunctionType):
                yield from part.__closure__ or ()
                part = getattr(part, "__wrapped__", None)  # noqa: PLW2901  # the next in the chain
