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

import sys
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

from torch import nn

from parallax._compat import modes
from parallax.bridge.blueprint import Blueprint, defaults
from parallax.bridge.buffers import Buffers, Slot
from parallax.bridge.pointers import Ref, resolved
from parallax.bridge.tables import Children, Weights, hasten, may_show
from parallax.core.fields import Buffer, Parameter
from parallax.core.structure import Leaf, Structure

__all__ = ["Shell", "Skeleton", "borrow", "empty_node", "put_back"]

Path = tuple[str, ...]


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


class Skeleton:
    """The ``nn.Module`` tree of one structure.

    Attributes:
        root: the topmost module, whose call is the original's.
        paths: the path of every module in it, by ``id``.
        parameters: for each parameter the index of its leaf, and the dict and name it goes to.
        shells: the Parallax modules in it, by path.
        links: the attributes that hold tensors of the model.
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
        self.quick = quick
        self._touched: list[Any] = []
        self._slow: list[Any] = []
        self._at: dict[Path, Any] = {}
        described: list[tuple[Path, Any, Blueprint]] = []
        unique = structure.expand
        self._unique = unique if unique is not None else range(structure.n_places)
        self.root = self._node(structure, (), 0, described)
        for path, node, blueprint in described:
            self._furnish(path, node, blueprint)
        self.paths = {id(node): path for path, node in self._at.items()}
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
        node = self._at[path] = empty_node(blueprint, structure.local.note.mode)
        kinds = structure.cls.__layout__.kinds  # type: ignore[attr-defined]  # a module class
        weights: dict[str, int] = {}
        below: dict[str, Any] = {}
        parts = zip(structure.keys(), structure.children, structure.starts(), strict=True)
        for name, child, start in parts:
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
        taken = {**attributes, **blueprint.attributes}
        if self.quick and not scaled and may_show(blueprint.cls, taken, [*weights, *below]):
            children = [name for name in below if name.isidentifier()]
            attributes["_modules"] = Children(node, below, children, self._touched)
            attributes["_parameters"] = Weights(node, home, weights, self._touched)
            home = attributes
        else:
            self._slow.append(node)
        self.parameters += [(index, home, name) for name, index in weights.items()]

    def _furnish(self, path: Path, node: Any, blueprint: Blueprint) -> None:
        attributes = vars(node)

        def follow(ref: Ref) -> Any:
            return self._follow(ref, path)

        for name, value in blueprint.attributes.items():
            attributes[name] = resolved(value, follow)
            if name in blueprint.linked:
                self.links.append(Link(attributes, name, value, follow))
        if type(attributes["_parameters"]) is Weights:
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
        """Keeps what the modules look like, to see what a call has changed."""
        self.nodes = list(self._at.values())
        self._attributes = [vars(node) for node in self.nodes]
        self._pristine = [dict(attributes) for attributes in self._attributes]
        own = [self._own.get(path, ()) for path in self._at]
        self._getters = [itemgetter("training", *names) for names in own]
        held = [a[name] for a, names in zip(self._attributes, own, strict=True) for name in names]
        self._containers = list({id(value): value for value in _containers(held)}.values())
        self._contents = [value.copy() for value in self._containers]
        self._lengths = list(map(len, self._attributes))
        self._seen = self._look()
        self.classes: list[Any] = list({type(node) for node in self.nodes})
        self.forwards = [cls.forward for cls in self.classes]
        self.counts = self.holders()

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

    def holders(self) -> list[int]:
        """How many references there are to each module."""
        return list(map(sys.getrefcount, self.nodes))

    def release(self) -> bool:
        """Lets go of all leaves and undoes what forward wrote, or leaves all to who holds a part.

        Returns:
            Whether the skeleton can serve another call.
        """
        if self.holders() != self.counts:
            written = [dict(attributes) for attributes in self._attributes]
            self._undo()  # what was written may have held modules
            if self.holders() != self.counts:
                for now, then in zip(self._attributes, written, strict=True):
                    now.clear()
                    now.update(then)
                return False
        self._unbind()
        if self._touched or self._slow or [*map(len, self._attributes)] != self._lengths:
            touched = [*self._touched]
            self._touched.clear()
            if not all([table.renew() for table in touched]):
                return False
            if not _alike(self._look(), self._seen):
                self._undo()
        if not _alike(self._containers, self._contents):
            self._refill()
        return True

    def _look(self) -> list[Any]:
        """What shows whether forward wrote attributes: how many there are, and their values."""
        try:
            values = [get(now) for get, now in zip(self._getters, self._attributes, strict=True)]
        except KeyError:
            return []
        return [*map(len, self._attributes), values]

    def _unbind(self) -> None:
        for _, home, name in self.parameters:
            home[name] = None
        if self.buffers.slots:
            self.buffers.release()
        for _, shell in self.shells:
            shell.inner = None
        for link in self.links:
            link.release()

    def _undo(self) -> None:
        """Makes attributes what they were, apart from those that tables show."""
        for now, before in zip(self._attributes, self._pristine, strict=True):
            tables = (before["_parameters"], before["_modules"])
            shown = [name for table in tables for name in getattr(table, "names", ())]
            kept = {name: now[name] for name in shown if name in now}
            now.clear()
            now.update(before)
            for name in shown:
                if name not in kept:
                    del now[name]
            now.update(kept)

    def _refill(self) -> None:
        """Makes containers what they were."""
        for container, content in zip(self._containers, self._contents, strict=True):
            container.clear()
            (container.extend if type(container) is list else container.update)(content)


_CONTAINERS = (list, dict, set, OrderedDict, defaultdict)


def _containers(values: Iterable[Any]) -> Iterator[Any]:
    """The lists, dicts and sets among values, and those within them."""
    for value in values:
        if type(value) in _CONTAINERS:
            yield value
        if type(value) in (list, tuple, set, frozenset):
            yield from _containers(value)
        elif type(value) in _CONTAINERS:
            yield from _containers(value.values())


def _alike(now: list[Any], before: list[Any]) -> bool:
    try:
        return now == before  # identity first, at C speed
    except (RuntimeError, TypeError, ValueError):  # tensors that have no truth value
        return False


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
