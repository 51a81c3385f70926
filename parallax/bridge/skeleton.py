"""Skeletons: private ``nn.Module`` trees that run the original's code on a lifted module's leaves.

A skeleton is built once per structure, holds no tensors of its own, and is bound for the duration
of one call: the leaves are written straight into its modules. One call has it to itself: a second
thread, or a call within the call, gets another. So calls run faster than the original's, whose
parameters are found less directly, and what a forward writes never reaches the lifted module:

- buffers are private copies; those that changed are handed back,
- attributes that forward wrote are undone,
- a skeleton that somebody still holds after the call (a checkpoint that recomputes in backward, a
  generator, a closure, the traceback of an error) stays as it is, theirs, and is not used again.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn

from parallax._compat import modes
from parallax.bridge.blueprint import Blueprint, defaults, stand_for_one
from parallax.bridge.buffers import Buffers, Slot
from parallax.bridge.pointers import Ref, resolved
from parallax.bridge.tables import hasten, is_quick, quicken
from parallax.bridge.undoing import Memory
from parallax.core.entries import Leaf
from parallax.core.fields import Buffer, Parameter
from parallax.core.structure import Structure
from parallax.effects.collection import Collecting
from parallax.effects.watching import watched_paths

__all__ = ["Shell", "Skeleton", "borrow", "empty_node", "hook", "put_back"]

Path = tuple[str, ...]


_ATTENTION = nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer
"""The layers of torch that have a fused way in eval mode."""


class Shell(nn.Module):
    """Stands for a Parallax module among the modules of a skeleton."""

    inner: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module that the shell stands for."""
        return self.inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattr__(name)
        return getattr(self.inner, name)


def hook(node: Any, returned: Callable[..., Any], called: Callable[..., Any] | None = None) -> None:
    """Adds a last forward hook to a private module, and a hook before it.

    The tables become new ones: those there are may be the blueprint's.
    """
    attributes = vars(node)
    for name, function in (("_forward_hooks", returned), ("_forward_pre_hooks", called)):
        if function is not None:
            number = -1 - len(attributes[name])  # torch counts up
            attributes[name] = OrderedDict({**attributes[name], number: function})
            flags = f"{name}_with_kwargs"
            attributes[flags] = OrderedDict({**attributes[flags], number: True})


def empty_node(blueprint: Blueprint, mode: str) -> Any:
    """An ``nn.Module`` of a blueprint's class, without attributes, tensors or children."""
    node = object.__new__(blueprint.cls)
    vars(node).update(
        defaults(), training=mode == "train", _parameters={}, _buffers={}, _modules={}
    )
    return node


class Link:
    """An attribute that points at tensors, and so is another one in each call."""

    __slots__ = ("_empty", "_follow", "_home", "_name", "_value")

    def __init__(
        self, home: dict[str, Any], name: str, value: Any, follow: Callable[[Ref], Any]
    ) -> None:
        self._home = home
        self._name = name
        self._value = value
        self._follow = follow
        self._empty = home[name]

    def bind(self) -> None:
        """Points at the tensors that are bound."""
        self._home[self._name] = resolved(self._value, self._follow)

    def release(self) -> None:
        """Points at none."""
        self._home[self._name] = self._empty


class Told:
    """Hooks of a module that tell of its calls to the collection that the lifted tree holds.

    Attributes:
        paths: where the module stands, in those of its places that are watched.
        places: the lifted module in each, during a call.
    """

    __slots__ = ("paths", "places")

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.places: tuple[Any, ...] = ()

    def called(self, node: Any, args: Any, kwargs: Any) -> None:
        """Before the call."""
        watcher = self.places[0]._rng
        if type(watcher) is Collecting and watcher.collection.enters:
            watcher.called(self.places)

    def returned(self, node: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """After the call and the original's own hooks: what the call returns."""
        watcher = self.places[0]._rng
        return (
            watcher.returned(self.places, args, kwargs, out) if type(watcher) is Collecting else out
        )


class Skeleton:
    """The ``nn.Module`` tree of one structure.

    Attributes:
        root: the topmost module, whose call is the original's.
        paths: the path of every module in it, the first one of several, by ``id``.
        parameters: for each parameter the index of its leaf, and the dict and name it goes to.
        shells: the Parallax modules in it, by path.
        links: the attributes that hold tensors of the model.
        told: the hooks of modules that are watched.
        fused: whether a module computes attention, for which torch has a fused way.
    """

    def __init__(self, structure: Structure, quick: bool = False) -> None:
        """The tree, without tensors.

        Args:
            structure: of the lifted module.
            quick: whether calls are quick, as ``tables`` has it.
        """
        self.parameters: list[tuple[int, dict[str, Any], str]] = []
        self.buffers = Buffers()
        self.shells: list[tuple[Path, Shell]] = []
        self.links: list[Link] = []
        self.told: list[Told] = []
        self.quick = quick
        self._touched: list[Any] = []
        self._at: dict[Path, Any] = {}
        self._parts: dict[Path, tuple[Structure, int]] = {}
        described: list[tuple[Path, Any, Blueprint]] = []
        self._watched = watched_paths(structure)
        unique = structure.expand
        self._unique = unique if unique is not None else range(structure.n_places)
        self.root = self._node(structure, (), 0, described)
        for path, node, blueprint in described:
            self._furnish(path, node, blueprint)
        self.paths: dict[int, Path] = {}
        for path, node in self._at.items():
            self.paths.setdefault(id(node), path)
        self.foreign = {item for _, _, blueprint in described for item in blueprint.objects}
        self._own = {path: tuple(blueprint.attributes) for path, _, blueprint in described}

    # -- building -----------------------------------------------------------------------------

    def _node(
        self,
        structure: Structure,
        path: Path,
        place: int,
        described: list[tuple[Path, Any, Blueprint]],
    ) -> Any:
        blueprint = structure.local.constants[0] if structure.local.constants else None
        if type(blueprint) is not Blueprint:
            shell = self._at[path] = Shell()
            self.shells.append((path, shell))
            return shell
        self._parts[path] = structure, place
        first = self._first_place(blueprint, path)
        if first is not None:
            there = {p[len(first) :]: n for p, n in self._at.items() if p[: len(first)] == first}
            self._at |= {path + rest: node for rest, node in there.items()}
            return self._at[path]
        node = self._at[path] = empty_node(blueprint, structure.local.note.mode)
        kinds = structure.cls.__layout__.kinds  # type: ignore[attr-defined]  # a module class
        weights: dict[str, int] = {}
        below: dict[str, Any] = {}
        for name, start, child in structure.below:
            kind = kinds[name]
            if kind.leaf is Parameter:
                weights[name] = self._unique[place + start]
            elif kind.leaf is Buffer:
                vars(node)["_buffers"][name] = None
                slot = Slot.of(self._unique[place + start], node, name, path)
                self.buffers.slots.append(slot)
            elif type(child) is Leaf:
                below[name] = None
            else:
                below[name] = self._node(child, (*path, name), place + start, described)
        self._tables(node, blueprint, weights, below)
        described.append((path, node, blueprint))
        return node

    def _first_place(self, blueprint: Blueprint, path: Path) -> Path | None:
        """Where the module at a path stands first, if it is one that stands in several places."""
        ref = blueprint.twin
        if ref is None or ref.up > len(path):
            return None
        first = (*path[: len(path) - ref.up], *ref.down)
        if first not in self._parts:
            return None
        (one, start), (two, place) = self._parts[first], self._parts[path]
        indices = [[*self._unique[k : k + one.n_places]] for k in (start, place)]
        if indices[0] != indices[1] or not _stand_for_one(one, first, two, path, 0):
            return None
        return first

    def _tables(
        self, node: Any, blueprint: Blueprint, weights: dict[str, int], below: dict[str, Any]
    ) -> None:
        """Fills the tables of parameters and children."""
        attributes = vars(node)
        attributes["_parameters"].update(dict.fromkeys(weights))
        attributes["_modules"].update(below)
        home = attributes["_parameters"]
        # An embedding with max_norm scales its weight in place: it gets a copy, too.
        scaled = blueprint.attributes.get("max_norm") is not None
        if scaled and "weight" in weights:
            self.buffers.slots.append(Slot(weights.pop("weight"), home, "weight", (), "scaled"))
        may = self.quick and not scaled
        if may and quicken(node, blueprint.attributes, weights, below, self._touched):
            home = attributes
        self.parameters += [(index, home, name) for name, index in weights.items()]

    def _furnish(self, path: Path, node: Any, blueprint: Blueprint) -> None:
        attributes = vars(node)

        def follow(ref: Ref) -> Any:
            return self._follow(ref, path)

        for name, value in blueprint.attributes.items():
            attributes[name] = resolved(value, follow)
            if name in blueprint.linked:
                self.links.append(Link(attributes, name, value, follow))
        watched = [place for place in self._watched if self._at.get(place) is node]
        if watched:
            told = Told(watched)
            self.told.append(told)
            hook(node, told.returned, told.called)
        if is_quick(node):
            hasten(node, self._touched)

    def _follow(self, ref: Ref, path: Path) -> Any:
        target = (*path[: len(path) - ref.up], *ref.down)
        if ref.up > len(path):
            return None  # above the module that is called on its own
        if not ref.tensor:
            found = self._at.get(target)
        else:
            owner = self._at.get(target[:-1])
            found = None if owner is None else getattr(owner, target[-1], None)
        return weakref.ref(found) if ref.weak and found is not None else found

    def remember(self) -> None:
        """Keeps what the modules look like, to undo what a call has changed."""
        nodes = [self._at[path] for path in self.paths.values()]
        own = [self._own.get(path, ()) for path in self.paths.values()]
        watched = {id(node) for node in nodes if is_quick(node)}
        self.classes: list[Any] = list({type(node) for node in nodes})
        self.forwards = [cls.forward for cls in self.classes]
        self.memory = Memory(nodes, own, self.foreign, self._touched, watched)
        self.fused = any([isinstance(node, _ATTENTION) for node in nodes])

    def at(self, path: Path) -> Any:
        """The module at a path."""
        return self._at[path]

    # -- one call -----------------------------------------------------------------------------

    def bind(self, module: Any, leaves: tuple[Any, ...]) -> None:
        """Puts the leaves in their places."""
        for index, home, name in self.parameters:
            home[name] = leaves[index]
        if self.buffers.slots:
            self.buffers.bind(leaves)
        for path, shell in self.shells:
            shell.inner = follow(module, path)
        for link in self.links:
            link.bind()
        for told in self.told:
            told.places = tuple([follow(module, path) for path in told.paths])

    def release(self) -> bool:
        """Drops all leaves and undoes what forward wrote, unless a part is still referenced.

        Returns:
            Whether the skeleton can serve another call.
        """
        return self.memory.restore(self._unbind)

    def _unbind(self) -> None:
        for _, home, name in self.parameters:
            home[name] = None
        if self.buffers.slots:
            self.buffers.release()
        for _, shell in self.shells:
            shell.inner = None
        for link in self.links:
            link.release()
        for told in self.told:
            told.places = ()


def _stand_for_one(one: Any, at: Path, two: Any, there: Path, depth: int) -> bool:
    """Whether all below two places can be that of one module that stands in both."""
    if type(one) is not Structure or type(two) is not Structure:
        return one is two or one == two
    if one.cls is not two.cls or one.local.note.mode != two.local.note.mode:
        return False
    blueprints = one.local.constants, two.local.constants
    if any(len(held) != 1 or type(held[0]) is not Blueprint for held in blueprints):
        return one == two
    return stand_for_one(blueprints[0][0], at, blueprints[1][0], there, depth) and all(
        _stand_for_one(a, (*at, key), b, (*there, key), depth + 1)
        for key, a, b in zip(one.keys(), one.children, two.children, strict=True)
    )


def follow(module: Any, path: Path) -> Any:
    """The module at a path."""
    for name in path:
        module = getattr(module, name)
    return module


_POOLS = ("skeletons", "quick skeletons")


def borrow(structure: Structure) -> Skeleton:
    """A skeleton for one call."""
    quick = not modes.module_calls_watched()
    pool: Any = structure.variants.get(_POOLS[quick])
    while pool:
        try:
            skeleton: Skeleton = pool.pop()
        except IndexError:  # another thread took the last one
            break
        if [cls.forward for cls in skeleton.classes] == skeleton.forwards:
            return skeleton
    skeleton = Skeleton(structure, quick)
    skeleton.remember()
    return skeleton


def put_back(structure: Structure, skeleton: Skeleton) -> None:
    """Keeps a skeleton for the next call, if it can serve one."""
    if skeleton.release():
        pools: Any = structure.variants
        pools.setdefault(_POOLS[skeleton.quick], []).append(skeleton)
