"""The structure of a module: everything about a tree except its leaves.

A ``Structure`` is an immutable description of one module and all below it. Two layers:

- the *skeleton*: classes, constants, container keys, ties. Trees with one skeleton fit together.
- the *notes*: mode, frozen leaves, path. They travel with a tree and are not compared
  when trees are combined, so that a tree made before ``train()`` or ``freeze()`` still fits.

Structures are interned, so comparing two is nearly always one ``is``. Nothing relies on it:
``==`` compares by value when the objects differ. They are interned by the identity of their parts,
as ``==`` of constants is not enough: ``1 == True``. The tables are weak; a class keeps its latest
structures.

To dynamo everything here is a constant, whose methods run as they are while a function is traced.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

from parallax._compat.methods import give_places
from parallax._compat.opaque import constant_while_tracing
from parallax.core.constants import constant_key, identity_key
from parallax.core.containers import keys_of
from parallax.core.entries import (
    PLAIN,
    Leaf,
    Local,
    Note,
    Static,
    class_of_instances,
    leaf_of,
    local_of,
)
from parallax.core.flatten import Shape, shape_of, write_traced
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import NODES

__all__ = ["Structure", "decode", "derived", "structure_of"]

MAX_DEPTH = 200

F = TypeVar("F", bound=Callable[..., Any])
Path = tuple[Any, ...]
Child = Any  # Leaf | Static | Structure
_structures: WeakValueDictionary[Any, Structure] = WeakValueDictionary()


def structure_of(
    local: Local, children: tuple[Child, ...], expand: tuple[int, ...] | None = None
) -> Structure:
    """The interned ``Structure`` of these parts."""
    # The parts are interned, and the value keeps them alive.
    name = (id(local), *map(_identity, children), expand)
    structure = _structures.get(name)
    if structure is None:
        structure = _structures[name] = Structure(local, children, expand)
        layout = getattr(local.cls, "__layout__", None)
        if layout is not None:  # kept, so that a loop that makes and drops it makes it once
            layout.latest.append(structure)
    return structure


def _identity(child: Child) -> Any:
    return (Static, identity_key(child.value)) if type(child) is Static else id(child)


@constant_while_tracing
class Structure:
    """A module without its leaves.

    Attributes:
        local: class, constants and note of the top node.
        children: one entry per child: a ``Leaf``, a ``Static`` or a ``Structure``.
        expand: for each place of a leaf, the index of its tensor among the unique leaves; ``None``
            when no two places share one.
        note: that of the top node.
        n_leaves: how many unique leaves there are, holes included.
        n_places: how many places for leaves there are, tied ones counted each.
        shape: the classes alone, with the generated code that builds and collects such trees.
    """

    __slots__ = (
        *("__dict__", "__weakref__", "children", "cls", "depth", "expand", "local", "n_leaves"),
        *("n_places", "note", "shape"),
    )

    def __init__(
        self, local: Local, children: tuple[Child, ...], expand: tuple[int, ...] | None = None
    ) -> None:
        self.local = local
        self.cls = local.cls
        self.note = local.note
        self.children = children
        self.expand = expand
        self.depth: int = 1 + max([child.depth for child in children], default=0)
        if self.depth > MAX_DEPTH:
            raise RecursionError(
                f"{local.cls.__name__} nests modules more than {MAX_DEPTH} deep. "
                f"Hold them side by side instead: blocks: tuple[Block, ...]"
            )
        self.shape: Shape = shape_of(
            class_of_instances(local),
            local.constants[0] if local.cls is FrozenDict else None,
            tuple([child.shape for child in children]),
        )
        self.n_places = self.shape.n_leaves
        self.n_leaves: int = self.n_places if expand is None else max(expand) + 1

    # -- building ---------------------------------------------------------------------------

    @cached_property
    def plan(self) -> tuple[Any, ...]:
        """What the generated ``build`` needs per node, in preorder: see ``Shape``."""
        return tuple([structure._given for structure in self.nodes()])

    @cached_property
    def _given(self) -> Any:
        """What a node holds besides its leaves and nodes; for a module first its structure."""
        if hasattr(self.cls, "__layout__"):
            statics = [child.value for child in self.children if type(child) is Static]
            return self, *self.local.constants, *statics
        if self.cls in NODES:
            return self.local.constants
        return [child.value if type(child) is Static else None for child in self.children]

    def build(self, leaves: Any, rng: Any = None) -> Any:
        """A new tree of this structure around unique ``leaves``; runs no user code."""
        if self.expand is not None:
            leaves = [leaves[k] for k in self.expand]
        if rng is None:
            return self.shape.build(leaves, 0, self.plan, 0)
        return self.shape.build_with_rng(leaves, 0, self.plan, 0, rng)

    def collect(self, tree: Any) -> tuple[Any, ...]:
        """The unique leaves of a tree of this structure."""
        leaves: tuple[Any, ...] = self.shape.collect(tree)
        return leaves if self.expand is None else tuple([leaves[k] for k in self.first])

    def traced(self, which: str) -> Callable[..., Any]:
        """The function that a trace calls for ``build``, ``build_with_rng`` or ``collect``."""
        give_places()
        return _written(self, which)

    # -- looking ----------------------------------------------------------------------------

    def keys(self) -> tuple[Any, ...]:
        """The key of each child: an attribute name, a dict key or an index."""
        layout = getattr(self.cls, "__layout__", None)
        if layout is not None:
            return layout.children  # type: ignore[no-any-return]  # a tuple of names
        return keys_of(self.cls, self.local.constants, len(self.children))

    @cached_property
    def below(self) -> tuple[tuple[Any, int, Child], ...]:
        """For each child its key, the place where its leaves start, and the child."""
        starts = itertools.accumulate([child.n_places for child in self.children], initial=0)
        return tuple(zip(self.keys(), starts, self.children, strict=False))  # the last is the end

    @cached_property
    def named(self) -> dict[str, tuple[Any, int, Child]]:
        """``below`` by the parts of dotted paths."""
        return {str(child[0]): child for child in self.below}

    def walk(self) -> list[tuple[tuple[Any, ...], int, Child]]:
        """This structure and all entries in it, in preorder: path, start of the leaves, entry."""
        walk = []
        children: list[tuple[tuple[Any, ...], int, Child]] = [((), 0, self)]
        while children:
            path, start, child = children.pop()
            walk.append((path, start, child))
            if type(child) is Structure:
                children += [
                    ((*path, key), start + k, child) for key, k, child in child.below[::-1]
                ]
        return walk

    def nodes(self) -> list[Structure]:
        """All nodes in preorder, this one first."""
        return [child for _, _, child in self.walk() if type(child) is Structure]

    def modules(self) -> dict[str, Structure]:
        """All modules by their dotted paths, this one first; containers are none."""
        nodes = [(path, node) for path, _, node in self.walk() if type(node) is Structure]
        modules = [(path, node) for path, node in nodes if hasattr(node.cls, "__layout__")]
        return {".".join(map(str, path)): node for path, node in modules}

    @cached_property
    def leaf_at(self) -> tuple[int, ...]:
        """For each place of a leaf, the index of its tensor among the unique leaves."""
        # A tuple, of which dynamo makes a constant while it traces; of a range it does not.
        return tuple(range(self.n_places)) if self.expand is None else self.expand

    @cached_property
    def first(self) -> tuple[int, ...]:
        """For each unique leaf, the first of its places."""
        first = {leaf: place for place, leaf in reversed([*enumerate(self.leaf_at)])}
        return tuple([first[leaf] for leaf in range(self.n_leaves)])

    @cached_property
    def ties(self) -> tuple[tuple[int, int], ...]:
        """Each later place of a leaf, and its first."""
        pairs = [(place, self.first[leaf]) for place, leaf in enumerate(self.leaf_at)]
        return tuple([(place, first) for place, first in pairs if place != first])

    @cached_property
    def place_paths(self) -> tuple[str, ...]:
        """The dotted path of every place."""
        return tuple(".".join(map(str, path)) for path, _, e in self.walk() if type(e) is Leaf)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The dotted path of every unique leaf; of a tied one that of its first place."""
        places = self.place_paths
        return tuple(places[k] for k in self.first)

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """The role of every unique leaf."""
        places = [entry.role for _, _, entry in self.walk() if type(entry) is Leaf]
        return tuple(places[k] for k in self.first)

    @cached_property
    def frozen(self) -> tuple[bool, ...]:
        """Which unique leaves are frozen; a tied leaf is when any of its places is."""
        marks = [False] * self.n_leaves
        for _, start, entry in self.walk():
            for offset in entry.note.frozen if type(entry) is Structure else ():
                marks[self.leaf_at[start + offset]] = True
        return tuple(marks)

    @cached_property
    def trainable(self) -> tuple[bool, ...]:
        """Which unique leaves are parameters and not frozen."""
        return tuple(
            role == "parameter" and not mark
            for role, mark in zip(self.roles, self.frozen, strict=True)
        )

    @cached_property
    def trained(self) -> tuple[int, ...]:
        """The indices of the unique leaves that are trained."""
        return tuple([k for k, trained in enumerate(self.trainable) if trained])

    # -- changing the notes ------------------------------------------------------------------

    def renote(self, change: Callable[[Path, Structure], Note]) -> Structure:
        """This structure with other notes: ``change`` of the path of each module and the module."""
        made: list[Child] = []
        # Children come after their parent in preorder, so going backwards meets them first.
        for path, _, entry in reversed(self.walk()):
            if type(entry) is not Structure:
                made.append(entry)
                continue
            local, children = entry.local, tuple([made.pop() for _ in entry.children])
            if hasattr(entry.cls, "__layout__"):
                local = local_of(local.cls, local.constants, local.key, change(path, entry))
            made.append(structure_of(local, children, entry.expand))
        return cast(Structure, made.pop())

    @cached_property
    def skeleton(self) -> Structure:
        """This structure without notes: what is compared when trees are combined."""
        if all(node.note == PLAIN for node in self.nodes()):
            return self
        return self.renote(lambda path, node: PLAIN)

    @cached_property
    def watched(self) -> bool:
        """Whether calls of a module here are watched."""
        return any(node.note.watched for node in self.nodes())

    @cached_property
    def variants(self) -> dict[Any, Any]:
        """A cache of what was derived from this one: see ``derived``."""
        return {}

    def forget(self) -> None:
        """Clears the cache, parts of which refer back to this structure."""
        self.__dict__.clear()

    # -- comparing ----------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Structure or hash(self) != hash(other):
            return False
        return self._key == other._key

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self._key)

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        nodes = [
            (node.local, tuple([None if type(c) is Structure else c for c in node.children]))
            for node in self.nodes()
        ]
        return self.expand, tuple(nodes)

    def __repr__(self) -> str:
        size = f"{self.shape.n_nodes} nodes, {self.n_leaves} leaves"
        return f"Structure({self.cls.__name__}, {size})"

    def __deepcopy__(self, memo: Any) -> Structure:
        return self  # it never changes

    def __reduce__(self) -> Any:
        return decode, (self.encode(),)

    def encode(self) -> tuple[Any, ...]:
        """A flat form for pickling, which needs no recursion at any depth."""
        return self.expand, tuple(
            (
                node.cls,
                node.local.constants,
                tuple(node.note._replace(watched=False)),
                tuple(
                    None if type(c) is Structure else c.role if type(c) is Leaf else (c.value,)
                    for c in node.children
                ),
                node.expand,
            )
            for node in self.nodes()
        )


def decode(flat: tuple[Any, ...]) -> Structure:
    """The structure that ``Structure.encode`` made ``flat`` from."""
    _, nodes = flat
    rebuilt: list[Structure] = []
    for cls, constants, note, marks, expand in reversed(nodes):
        children: tuple[Child, ...] = tuple(
            rebuilt.pop()
            if mark is None
            else leaf_of(mark)
            if isinstance(mark, str)
            else Static(mark[0], cls.__name__)
            for mark in marks
        )
        layout = getattr(cls, "__layout__", None)
        if layout is not None:  # a class may have got dicts of leaves since then
            children += (_EMPTY,) * (len(layout.children) - len(children))
        key = tuple(constant_key(value, cls.__name__) for value in constants)
        noted = Note(*note)
        summed: Any = noted.summed
        pairs = [(s, None) if isinstance(s, str) else s for s in summed]  # names alone before 0.2
        noted = noted._replace(summed=tuple(pairs))
        rebuilt.append(structure_of(local_of(cls, constants, key, noted), children, expand))
    return rebuilt.pop()


def derived(function: F) -> F:
    """Has results of a function of a structure be kept on it, as a decorator.

    They must follow from the structure and the other arguments, which hash and come by position.
    """

    @wraps(function)
    def call(structure: Any, *args: Any) -> Any:
        found = structure.variants.get((function, *args))
        if found is None:
            found = structure.variants[function, *args] = function(structure, *args)
        return found

    return cast(F, call)


_written = derived(write_traced)
_EMPTY: Child = structure_of(local_of(FrozenDict, ((),), ((),)), ())
"""An empty dict, which has no leaves."""
