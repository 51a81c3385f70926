"""Which classes are nodes of a tree, and how each is taken apart and put together.

This is the table alone, for all files above; ``registry`` fills it.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = [
    "CLASS_CLOCK", "NODES", "Instance", "Node", "dict_of", "is_module", "is_node", "new_with_dict",
    "reading",
]  # fmt: skip


class Node(NamedTuple):
    """How one registered class flattens and unflattens, in optree's order of arguments."""

    flatten: Callable[[Any], tuple[Iterable[Any], Any]]
    unflatten: Callable[[Any, Any], Any]


class Instance:
    """The memory of a module: an attribute dict, and a slot for the memo of its leaves.

    The memo has a slot because writing it into the dict of a constructed module would slow every
    later attribute read on CPython 3.11. What generated code writes is in the dict, where a write
    costs a third: the structure and the rng. ``_spec`` is ``None`` while ``__init__`` runs, and
    only the note of a structure when raw optree or a traced function made the module.
    """

    __slots__ = ("__dict__", "__weakref__", "_leaves")

    _spec: Any = None
    _rng: Any = None


_set_dict = Instance.__dict__["__dict__"].__set__  # past the __setattr__ that freezes modules
dict_of = Instance.__dict__["__dict__"].__get__
"""The attribute dict of a module, of one that was given away, too."""


def new_with_dict(cls: type[Instance]) -> Instance:
    """A module without attributes that has an attribute dict of its own.

    CPython 3.13, and no other, keeps the attributes of a class that has a slot beside its dict in
    dicts that share their keys, from which it reads three times slower than from any other.
    """
    module = object.__new__(cls)
    _set_dict(module, {})
    return module


class _Clock:
    time = 0


CLASS_CLOCK = _Clock()
"""Its ``time`` moves when an attribute of a module class is set or deleted."""

NODES: dict[type, Node] = {}
"""Classes that users registered; modules are recognised by their layout instead."""


def is_module(tree: Any) -> bool:
    """Whether a tree is one module; an attribute is read faster than ``isinstance`` looks."""
    return hasattr(type(tree), "__layout__")


def is_node(cls: Any) -> bool:
    """Whether a class is a module class or a registered one."""
    return hasattr(cls, "__layout__") or cls in NODES


def reading(source: str, name: str) -> str:
    """Code that reads an attribute; a lifted ``nn.Module`` has names such as ``"0"``, too."""
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return f"{source}.{name}" if plain else f"getattr({source}, {name!r})"
