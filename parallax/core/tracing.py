"""Flattening and building modules while dynamo traces.

The eager code cannot be used there: memos would tie the graph to one instance, code cannot be
generated while tracing, and dynamo does not trace a write through the ``__dict__`` slot. This is
the same meaning in two methods per class, written when the class is registered:

- ``__take__(places)`` appends the module's leaves to a list,
- ``__make__(leaves, rng)`` makes another module of the same structure around other leaves.

So the structure of a module under tracing is a module. Dynamo spends some 50 us on every bytecode
it follows and a guard on every value it looks at; hence straight-line code without loops, and
nothing is read that need not be: constants and the eager structure pass through unseen.

Ties are those that eager code found and that the module carries. A module without a structure was
made in the trace, where asking whether two tensors are one costs no guard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from parallax.core.fields import Lazy, Parameter
from parallax.core.frozendict import FrozenDict
from parallax.core.kinds import Kind
from parallax.core.layout import Layout, role_of
from parallax.core.nodes import NODES, is_module, reading
from parallax.core.structure import Leaf, Structure

__all__ = ["Outline", "count_places", "flatten", "modules", "rebuild", "take_apart", "unflatten",
           "walk", "write_methods"]  # fmt: skip

_ANY = Kind(leaf=Tensor, child=True, optional=True)
_SAME: Any = "same"


class Outline:
    """The structure of a module under tracing.

    Attributes:
        module: the module that was taken apart; its leaves are not looked at.
        ties: pairs ``(place, first place)`` of the places that share a leaf with an earlier one.
        n_places: how many places for leaves there are.
        holes: the indices of the unique leaves that are missing, when ``flatten`` left them out.
        rng: what the modules hold as rng.
    """

    def __init__(
        self, module: Any, ties: tuple[tuple[int, int], ...], n_places: int, holes: tuple[int, ...]
    ) -> None:
        self.module = module
        self.ties = ties
        self.n_places = n_places
        self.holes = holes
        self.rng = module._rng

    def __eq__(self, other: object) -> bool:
        return (
            type(other) is Outline
            and self.holes == other.holes
            and self.ties == other.ties
            and self.difference(other) is None
        )

    def __hash__(self) -> int:
        return hash((type(self.module), self.n_places, self.ties, self.holes))

    @property
    def n_leaves(self) -> int:
        """How many unique leaves there are, holes included."""
        return self.n_places - len(self.ties)

    @property
    def trainable(self) -> list[bool]:
        """Which unique leaves are parameters and not frozen."""
        spec = self.module._spec
        if type(spec) is Structure:
            return [mark == "t" for mark in spec.marks]
        places: list[bool] = []
        _trainable(self.module, _ANY, places)
        return self.unique(places)

    def difference(self, other: Outline) -> str | None:
        """The dotted path where the skeletons first differ, ties aside; ``None`` if nowhere."""
        spec = self.module._spec
        if spec is other.module._spec and type(spec) is Structure:
            return None
        return _difference(self.module, other.module, _ANY, "")

    def place_paths(self) -> list[str]:
        """The dotted path of every place."""
        return [_dotted(keys) for keys, node in walk(self.module) if type(node) is Leaf]

    def paths(self) -> list[str]:
        """The dotted path of every unique leaf."""
        return self.unique(self.place_paths())

    def unique(self, places: list[Any]) -> list[Any]:
        """One entry per unique leaf, of a list with one entry per place."""
        if not self.ties:
            return places
        later = dict(self.ties)
        return [entry for place, entry in enumerate(places) if place not in later]

    def expanded(self, leaves: list[Any]) -> list[Any]:
        """One entry per place, of a list with one entry per unique leaf."""
        if not self.ties:
            return leaves
        later, given = dict(self.ties), iter(leaves)
        places: list[Any] = []
        for place in range(self.n_places):
            places.append(places[later[place]] if place in later else next(given))
        return places


def take_apart(module: Any) -> tuple[list[Any], Outline]:
    """The unique leaves, holes included, and the outline of a module."""
    places: list[Any] = []
    module.__take__(places)
    spec = module._spec
    ties = spec.ties if type(spec) is Structure else _find_ties(places)
    outline = Outline(module, ties, len(places), ())
    return outline.unique(places), outline


def rebuild(outline: Outline, leaves: Iterable[Any], rng: Any = _SAME) -> Any:
    """The module of an outline around unique leaves, holes included; by default with its rng."""
    places = outline.expanded(list(leaves)) if outline.ties else leaves
    return outline.module.__make__(iter(places), outline.rng if rng is _SAME else rng)


def flatten(module: Any) -> tuple[list[Any], Outline]:
    """As torch's registry wants it: the present leaves, and a context."""
    leaves, outline = take_apart(module)
    present = [leaf for leaf in leaves if leaf is not None]
    if len(present) != len(leaves):
        outline.holes = tuple([k for k, leaf in enumerate(leaves) if leaf is None])
    if outline.rng is not None and outline.rng.key is not None:
        present.append(outline.rng.key)
    return present, outline


def unflatten(outline: Outline, children: Iterable[Any]) -> Any:
    """The inverse of ``flatten``."""
    rng = outline.rng
    if rng is not None and rng.key is not None:
        *children, key = children
        rng = rng.with_key(key)
    if outline.holes:
        given = iter(children)
        children = [None if k in outline.holes else next(given) for k in range(outline.n_leaves)]
    return rebuild(outline, children, rng)


def count_places(value: Any, kind: Kind) -> int:
    """How many places for leaves a field's value has."""
    places: list[Any] = []
    _take(value, kind, places)
    return len(places)


def _find_ties(places: list[Any]) -> tuple[tuple[int, int], ...]:
    first: dict[Any, int] = {}
    ties = []
    for place, leaf in enumerate(places):
        if isinstance(leaf, Tensor):  # dynamo hashes a tensor by identity, as Python does
            if leaf in first:
                ties.append((place, first[leaf]))
            else:
                first[leaf] = place
    return tuple(ties)


# -- the methods of a class ---------------------------------------------------------------------


def write_methods(layout: Layout) -> dict[str, Callable[..., Any]]:
    """Writes ``__take__`` and ``__make__`` for one class, in as few bytecodes as they can have."""
    scope: dict[str, Any] = {"take": _take, "make": _make}
    taking, leaves = ["def __take__(m, places):", "pass"], ""
    making = ["def __make__(m, leaves, rng):", "o = object.__new__(type(m))", "d = o.__dict__"]
    making += [f"d[{name!r}] = {reading('m', name)}" for name in ("_spec", *layout.constants)]
    making += ["if rng is not None: d['_rng'] = rng"]
    for index, (name, kind) in enumerate(layout.kinds.items()):
        if kind == Kind(leaf=kind.leaf, optional=kind.optional):
            leaves += f"{reading('m', name)}, "
            making += [f"d[{name!r}] = next(leaves)"]
            continue
        if leaves:
            taking, leaves = [*taking, f"places += ({leaves})"], ""
        scope[f"kind_{index}"] = kind
        take, made = f"take(v, kind_{index}, places)", f"make(v, kind_{index}, leaves, rng)"
        if kind.child:  # saves a call for each module below
            take = f"v.__take__(places) if hasattr(v, '__take__') else {take}"
            made = f"v.__make__(leaves, rng) if hasattr(v, '__make__') else {made}"
        taking += [f"v = {reading('m', name)}", take]
        making += [f"v = {reading('m', name)}", f"d[{name!r}] = {made}"]
    if leaves:
        taking += [f"places += ({leaves})"]
    source = "\n    ".join(taking) + "\n" + "\n    ".join([*making, "return o"])
    exec(source, scope)
    return {name: scope[name] for name in ("__take__", "__make__")}


def _take(value: Any, kind: Kind, places: list[Any]) -> None:
    if hasattr(value, "__take__"):
        value.__take__(places)
    elif kind.items is not None and isinstance(value, tuple):
        for index, item in enumerate(value):
            _take(item, kind.item(index), places)
    elif kind.mapping is not None and isinstance(value, FrozenDict):
        for item in value.values():
            _take(item, kind.mapping, places)
    elif type(value) in NODES:
        for part in NODES[type(value)].flatten(value)[0]:
            _take(part, _ANY, places)
    elif not _is_constant(value, kind):
        places.append(value)


def _make(value: Any, kind: Kind, leaves: Iterator[Any], rng: Any) -> Any:
    if hasattr(value, "__make__"):
        return value.__make__(leaves, rng)
    cls = type(value)
    if kind.items is not None and isinstance(value, tuple):
        items = [_make(v, kind.item(k), leaves, rng) for k, v in enumerate(value)]
        return tuple(items) if cls is tuple else cls(*items)
    if kind.mapping is not None and isinstance(value, FrozenDict):
        return FrozenDict({k: _make(v, kind.mapping, leaves, rng) for k, v in value.items()})
    if cls in NODES:
        parts, aux = NODES[cls].flatten(value)
        return NODES[cls].unflatten(aux, tuple([_make(v, _ANY, leaves, rng) for v in parts]))
    return value if _is_constant(value, kind) else next(leaves)


def _is_constant(value: Any, kind: Kind) -> bool:
    return kind.constant and value is not None and not isinstance(value, (Tensor, Lazy))


# -- looking ------------------------------------------------------------------------------------


def _parts(value: Any, kind: Kind) -> list[tuple[Any, Any, Kind]] | None:
    """The keys, values and kinds below a node; ``None`` for what is no node."""
    cls = type(value)
    if hasattr(cls, "__layout__"):
        kinds = cls.__layout__.kinds
        return [(name, getattr(value, name), kinds[name]) for name in cls.__layout__.children]
    if kind.items is not None and isinstance(value, tuple):
        names = getattr(cls, "_fields", None) or range(len(value))
        return [(names[k], item, kind.item(k)) for k, item in enumerate(value)]
    if kind.mapping is not None and isinstance(value, FrozenDict):
        return [(key, item, kind.mapping) for key, item in value.items()]
    if cls in NODES:
        return [(k, part, _ANY) for k, part in enumerate(NODES[cls].flatten(value)[0])]
    return None


def walk(
    value: Any, kind: Kind = _ANY, keys: tuple[Any, ...] = ()
) -> list[tuple[tuple[Any, ...], Any]]:
    """As ``Structure.walk``: every node, which here is its value, and leaf, without constants."""
    parts = _parts(value, kind)
    if parts is None:
        return [] if _is_constant(value, kind) else [(keys, role_of(kind))]
    found = [(keys, value)]
    for key, part, inner in parts:
        found += walk(part, inner, (*keys, key))
    return found


def modules(module: Any) -> list[tuple[str, Any]]:
    """Every module in a module with its dotted path, parents first."""
    return [(_dotted(keys), node) for keys, node in walk(module) if is_module(node)]


def _dotted(keys: tuple[Any, ...]) -> str:
    return ".".join([str(key) for key in keys])


def _trainable(value: Any, kind: Kind, places: list[bool]) -> None:
    spec = getattr(value, "_spec", None) if hasattr(type(value), "__layout__") else None
    if type(spec) is Structure:
        places += take_apart(value)[1].expanded([mark == "t" for mark in spec.marks])
        return
    parts = _parts(value, kind)
    if parts is not None:
        for _, part, inner in parts:
            _trainable(part, inner, places)
    elif not _is_constant(value, kind):
        places.append(kind.leaf is Parameter)


def _difference(one: Any, two: Any, kind: Kind, path: str) -> str | None:
    mine, theirs = _parts(one, kind), _parts(two, kind)
    if mine is None or theirs is None:
        same = mine is theirs
        if _is_constant(one, kind) or _is_constant(two, kind):
            same = same and _same(one, two)
        return None if same else path
    if type(one) is not type(two) or [key for key, _, _ in mine] != [key for key, _, _ in theirs]:
        return path
    for name, a, b in _constants(one, two):
        if not _same(a, b):
            return f"{path}.{name}" if path else name
    for (key, a, inner), (_, b, _) in zip(mine, theirs):  # noqa: B905  # dynamo traces no strict=
        found = _difference(a, b, inner, f"{path}.{key}" if path else str(key))
        if found is not None:
            return found
    return None


def _constants(one: Any, two: Any) -> list[tuple[str, Any, Any]]:
    cls = type(one)
    if hasattr(cls, "__layout__"):
        return [(name, getattr(one, name), getattr(two, name)) for name in cls.__layout__.constants]
    if cls in NODES:
        return [("metadata", NODES[cls].flatten(one)[1], NODES[cls].flatten(two)[1])]
    return []


def _same(one: Any, two: Any) -> bool:
    """As equal ``constant_key``, which dynamo cannot follow; floats by what tells them apart."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return repr(one) == repr(two)
    if isinstance(one, tuple):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two))  # noqa: B905  # as above
    if isinstance(one, partial):
        parts = ((p.func, p.args, tuple(sorted(p.keywords.items()))) for p in (one, two))
        return _same(*parts)
    return bool(one == two)
