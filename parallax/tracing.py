"""Flattening and building modules while dynamo traces.

The eager code cannot be used there: memos would tie the graph to one instance, generated code
cannot be made while tracing, and dynamo does not trace a write through the ``__dict__`` slot.
This is the same meaning in plain recursion, with an outline (nested tuples) for a structure.
Ties are those that eager code found and that the module carries; they are never looked for here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from parallax.fields import Lazy
from parallax.frozendict import FrozenDict
from parallax.kinds import Kind
from parallax.nodes import NODES
from parallax.structure import Structure

__all__ = ["Outline", "flatten", "rebuild", "take_apart", "unflatten"]

_LEAF = "leaf"
_ANY = Kind(leaf=Tensor, child=True, optional=True)


class Outline:
    """The structure of a module under tracing.

    Attributes:
        skeleton: nested tuples of classes, constants and children; what is compared.
        specs: the structures that the modules carry, in preorder; carried, not compared.
        expand: for each place the index of its unique leaf, as in ``Structure``.
        present: for each unique leaf whether it is there.
        rng: what the modules hold as rng.
    """

    def __init__(
        self,
        skeleton: Any,
        specs: list[Any],
        expand: tuple[int, ...] | None,
        present: tuple[bool, ...],
        rng: Any,
    ) -> None:
        self.skeleton = skeleton
        self.specs = specs
        self.expand = expand
        self.present = present
        self.rng = rng

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Outline
            and self.present == other.present
            and self.expand == other.expand
            and self.skeleton == other.skeleton
        )

    def __hash__(self) -> int:
        return hash(self.skeleton)

    def paths(self) -> list[str]:
        """The dotted path of every unique leaf."""
        places: list[str] = []
        _paths(self.skeleton, "", places)
        if self.expand is None:
            return places
        unique: list[str] = []
        for place, index in enumerate(self.expand):
            if index == len(unique):
                unique.append(places[place])
        return unique


def take_apart(module: Any) -> tuple[list[Any], Outline]:
    """The unique leaves, holes included, and the outline of a module."""
    places: list[Any] = []
    specs: list[Any] = []
    skeleton = _walk(module, _ANY, places, specs)
    spec = module._spec
    expand = spec.expand if type(spec) is Structure else None
    if expand is None:
        leaves = places
    else:
        leaves = []
        for place, index in enumerate(expand):
            if index == len(leaves):
                leaves.append(places[place])
    present = tuple([leaf is not None for leaf in leaves])
    return leaves, Outline(skeleton, specs, expand, present, module._rng)


def rebuild(outline: Outline, leaves: Iterable[Any]) -> Any:
    """The module of an outline around unique leaves, holes included."""
    leaves = list(leaves)
    if outline.expand is not None:
        leaves = [leaves[k] for k in outline.expand]
    return _make(outline.skeleton, iter(leaves), iter(outline.specs), outline.rng)


def flatten(module: Any) -> tuple[list[Any], Outline]:
    """As torch's registry wants it: the present leaves, and a context."""
    leaves, outline = take_apart(module)
    return [leaf for leaf in leaves if leaf is not None], outline


def unflatten(outline: Outline, children: Iterable[Any]) -> Any:
    """The inverse of ``flatten``."""
    given = iter(children)
    return rebuild(outline, [next(given) if here else None for here in outline.present])


def _walk(value: Any, kind: Kind, places: list[Any], specs: list[Any]) -> Any:
    cls = type(value)
    if hasattr(cls, "__layout__"):
        layout = cls.__layout__
        specs.append(value._spec)
        constants = tuple([getattr(value, name) for name in layout.constants])
        children = tuple(
            [_walk(getattr(value, n), layout.kinds[n], places, specs) for n in layout.children]
        )
        return cls, constants, children
    if kind.items is not None and isinstance(value, tuple):
        return cls, (), tuple(
            [_walk(item, kind.item(k), places, specs) for k, item in enumerate(value)]
        )
    if kind.mapping is not None and isinstance(value, FrozenDict):
        return cls, tuple(value), tuple(
            [_walk(item, kind.mapping, places, specs) for item in value.values()]
        )
    if cls in NODES:
        parts, aux = NODES[cls].flatten(value)
        return cls, (aux,), tuple([_walk(part, _ANY, places, specs) for part in parts])
    if kind.constant and value is not None and not isinstance(value, (Tensor, Lazy)):
        return "constant", value, ()
    places.append(value)
    return _LEAF


def _make(skeleton: Any, leaves: Iterator[Any], specs: Iterator[Any], rng: Any) -> Any:
    if skeleton is _LEAF:
        return next(leaves)
    cls, constants, parts = skeleton
    if cls == "constant":
        return constants
    if hasattr(cls, "__layout__"):
        layout = cls.__layout__
        module = object.__new__(cls)
        attributes = module.__dict__
        attributes["_spec"] = next(specs)
        if rng is not None:
            attributes["_rng"] = rng
        for name, constant in zip(layout.constants, constants):  # noqa: B905  # dynamo traces no strict=
            attributes[name] = constant
        for name, part in zip(layout.children, parts):  # noqa: B905  # as above
            attributes[name] = _make(part, leaves, specs, rng)
        return module
    values = [_make(part, leaves, specs, rng) for part in parts]
    if cls is tuple:
        return tuple(values)
    if cls is FrozenDict:
        return FrozenDict(zip(constants, values))  # noqa: B905  # as above
    if cls in NODES:
        return NODES[cls].unflatten(constants[0], tuple(values))
    return cls(*values)


def _paths(skeleton: Any, path: str, places: list[str]) -> None:
    if skeleton is _LEAF:
        places.append(path)
        return
    cls, constants, parts = skeleton
    if cls == "constant":
        return
    if hasattr(cls, "__layout__"):
        keys = cls.__layout__.children
    elif cls is FrozenDict:
        keys = constants
    else:
        keys = getattr(cls, "_fields", None) or tuple(range(len(parts)))
    for key, part in zip(keys, parts):  # noqa: B905  # dynamo traces no strict=
        _paths(part, f"{path}.{key}" if path else str(key), places)
