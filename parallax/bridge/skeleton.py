"""Skeletons: private ``nn.Module`` trees that run the original's code on a lifted module's leaves.

A skeleton is built once per structure, holds no tensors of its own, and is bound for the duration
of one call: the leaves are written straight into its ``_parameters`` and ``_buffers``. One call
has it to itself: a second thread, or a call within the call, gets another. So calls run at
the original's speed, and what a forward writes never reaches the lifted module:

- buffers are private copies; those that changed are handed back,
- attributes that forward wrote are undone,
- a skeleton that somebody still holds after the call (a checkpoint that recomputes in backward, a
  generator, a closure, the traceback of an error) stays as it is, theirs, and is not used again.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parallax import _compat
from parallax.bridge.blueprint import Blueprint, Ref, defaults, resolved
from parallax.fields import Buffer, Parameter
from parallax.structure import Leaf, Structure

__all__ = ["NORMS", "Shell", "Skeleton", "borrow", "empty_node", "put_back"]

Path = tuple[str, ...]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
          nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip


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


class Slot:
    """A place of one leaf in a skeleton."""

    __slots__ = ("home", "index", "kept", "name", "owner", "silent")

    def __init__(
        self, index: int, home: dict[str, Any], name: str, owner: Path, silent: str
    ) -> None:
        self.index = index  # among the unique leaves
        self.home = home
        self.name = name
        self.owner = owner
        # torch's batch_norm writes running statistics without counting a version: such writes
        # are looked for in a "norm" layer, and in one-dimensional buffers of "other" layers.
        self.silent = silent
        self.kept = silent != "scaled"


def empty_node(blueprint: Blueprint, mode: str) -> Any:
    """An ``nn.Module`` of a blueprint's class, without attributes, tensors or children."""
    node = object.__new__(blueprint.cls)
    vars(node).update(
        defaults(), training=mode == "train", _parameters={}, _buffers={}, _modules={}
    )
    return node


class Skeleton:
    """The ``nn.Module`` tree of one structure.

    Attributes:
        root: the topmost module, whose call is the original's.
        paths: the path of every module in it, by ``id``.
    """

    def __init__(self, structure: Structure) -> None:
        self.parameters: list[tuple[int, dict[str, Any], str]] = []
        self.buffers: list[Slot] = []
        self.shells: list[tuple[Path, Shell]] = []
        self.links: list[Callable[[], None]] = []
        self.watched: list[tuple[dict[str, Any], tuple[Any, ...], dict[str, Any]]] = []
        self.contents: list[tuple[Any, Any]] = []
        self.copies: dict[int, tuple[Tensor, int, Tensor, int]] = {}
        self.given: list[tuple[Any, Any, int]] = []
        self._at: dict[Path, Any] = {}
        self._described: list[tuple[Path, Any, Blueprint]] = []
        expand = structure.expand
        self._unique = expand if expand is not None else range(structure.n_places)
        self.counts: list[int] = []
        self.root = self._node(structure, (), 0)
        for described in self._described:
            self._furnish(*described)
        self.paths = {id(node): path for path, node in self._at.items()}
        self.nodes = list(self._at.values())
        del self._described, self._unique

    # -- building -----------------------------------------------------------------------------

    def _node(self, structure: Structure, path: Path, place: int) -> Any:
        blueprint = structure.local.constants[0] if structure.local.constants else None
        if type(blueprint) is not Blueprint:
            shell = self._at[path] = Shell()
            self.shells.append((path, shell))
            return shell
        node = self._at[path] = empty_node(blueprint, structure.local.note.mode)
        kinds = structure.cls.__layout__.kinds  # type: ignore[attr-defined]  # a module class
        parts = zip(structure.keys(), structure.children, structure.starts(), strict=True)
        for name, child, start in parts:
            kind = kinds[name]
            if kind.leaf is Parameter:
                self._parameter(node, blueprint, name, place + start, path)
            elif kind.leaf is Buffer:
                vars(node)["_buffers"][name] = None
                index = self._unique[place + start]
                silent = _silent(node, name)
                self.buffers.append(Slot(index, vars(node)["_buffers"], name, path, silent))
            elif type(child) is Leaf:
                vars(node)["_modules"][name] = None
            else:
                below = self._node(child, (*path, name), place + start)
                vars(node)["_modules"][name] = below
        self._described.append((path, node, blueprint))
        return node

    def _parameter(
        self, node: Any, blueprint: Blueprint, name: str, place: int, path: Path
    ) -> None:
        home = vars(node)["_parameters"]
        home[name] = None
        # An embedding with max_norm scales its weight in place: it gets a copy, too.
        if blueprint.attributes.get("max_norm") is not None and name == "weight":
            self.buffers.append(Slot(self._unique[place], home, name, (), "scaled"))
        else:
            self.parameters.append((self._unique[place], home, name))

    def _furnish(self, path: Path, node: Any, blueprint: Blueprint) -> None:
        attributes = vars(node)
        for name, value in blueprint.attributes.items():
            attributes[name] = self._value(value, path)
            self._link(attributes[name], value, path)
        if _may_write(blueprint):
            self.watched.append((attributes, tuple(attributes.values()), dict(attributes)))
            self.contents += [
                (value, value.copy())
                for value in (attributes["_modules"], *map(attributes.get, blueprint.attributes))
                if isinstance(value, (dict, list, set)) and hasattr(value, "copy")
            ]

    def _value(self, value: Any, path: Path) -> Any:
        return resolved(value, lambda ref: self._follow(ref, path))

    def _follow(self, ref: Ref, path: Path) -> Any:
        if ref.up > len(path):
            return None  # above the module that is called on its own
        target = (*path[: len(path) - ref.up], *ref.down)
        return self._at.get(target)  # None for a tensor, which is linked when it is bound

    def _link(self, made: Any, value: Any, path: Path) -> None:
        """Has the tensors in a list or dict written anew whenever leaves are bound."""
        if isinstance(value, (list, dict)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in list(items):
                if type(item) is Ref:
                    self._link_item(made, key, item, path)
                else:
                    self._link(made[key], item, path)

    def _link_item(self, container: Any, key: Any, ref: Ref, path: Path) -> None:
        target = (*path[: len(path) - ref.up], *ref.down)
        owner = None if ref.up > len(path) or not target else self._at.get(target[:-1])
        if owner is None or target in self._at:
            return
        name = target[-1]
        inside = vars(owner)
        home = inside["_parameters"] if name in inside["_parameters"] else inside["_buffers"]

        def bind() -> None:
            tensor = home.get(name)
            container[key] = weakref.ref(tensor) if ref.weak and tensor is not None else tensor

        self.links.append(bind)

    def at(self, path: Path) -> Any:
        """The module at a path."""
        return self._at[path]

    # -- one call -----------------------------------------------------------------------------

    def bind(self, module: Any, leaves: tuple[Any, ...]) -> None:
        """Puts the leaves in their places."""
        for index, home, name in self.parameters:
            home[name] = leaves[index]
        if self.buffers:
            self._bind_buffers(leaves)
        for path, shell in self.shells:
            shell.inner = follow(module, path)
        for link in self.links:
            link()

    def _bind_buffers(self, leaves: tuple[Any, ...]) -> None:
        plain = _plain()
        given: dict[int, tuple[Any, Any, int]] = {}
        self.given = []
        for slot in self.buffers:
            made = given.get(slot.index)
            if made is None:
                leaf = leaves[slot.index]
                made = given[slot.index] = (leaf, *self._copy(slot, leaf, plain))
            slot.home[slot.name] = made[1]
            self.given.append(made)

    def _copy(self, slot: Slot, leaf: Any, plain: bool) -> tuple[Any, int]:
        """A private copy of a buffer, the one of the last call if nothing has changed."""
        if not isinstance(leaf, Tensor):
            return leaf, 0
        statistic = leaf.dim() <= 1 and leaf.is_floating_point()  # may be written silently
        if not (plain and slot.kept) or statistic or leaf.is_inference() or leaf.requires_grad:
            return _private(leaf)
        known = self.copies.get(slot.index)
        if known is not None and known[0] is leaf and known[1] == leaf._version:
            return known[2:]
        copy, version = _private(leaf)
        self.copies[slot.index] = (leaf, leaf._version, copy, version)
        return copy, version

    def changes(self) -> list[tuple[Path, str, Any]]:
        """The owner, name and new value of every buffer that the call has changed."""
        changed, plain = [], _plain()
        for slot, (leaf, before, version) in zip(self.buffers, self.given, strict=True):
            now = slot.home.get(slot.name)
            if now is before and (
                now is None or (now._version == version and _silently_same(slot, now, leaf, plain))
            ):
                continue
            self.copies.pop(slot.index, None)
            if slot.kept and now is not None:
                changed.append((slot.owner, slot.name, now))
        return changed

    def holders(self) -> list[int]:
        """How many references there are to each module."""
        return list(map(sys.getrefcount, self.nodes))

    def release(self) -> bool:
        """Lets go of all leaves; returns whether the skeleton can serve another call.

        It cannot when somebody holds a part of it, or when forward changed a container in it.
        """
        for attributes, values, pristine in self.watched:
            if not _unchanged(attributes, values):
                attributes.clear()
                attributes.update(pristine)
        if any(now != before for now, before in self.contents):
            return False
        if self.holders() != self.counts:
            return False
        for _, home, name in self.parameters:
            home[name] = None
        for slot in self.buffers:
            slot.home[slot.name] = None
        for _, shell in self.shells:
            shell.inner = None
        for link in self.links:
            link()
        self.given = []
        return True


def _plain() -> bool:
    """Whether tensors are what they seem: no transform wraps them, nothing is traced."""
    return not (_compat.transform_active() or _compat.dispatch_mode_active())


def _silent(node: nn.Module, name: str) -> str:
    if isinstance(node, NORMS):
        return "norm" if node.training and name != "num_batches_tracked" else ""
    return "other"


def _silently_same(slot: Slot, now: Tensor, leaf: Tensor, plain: bool) -> bool:
    """Whether a buffer whose version was not counted up has indeed kept its value."""
    if slot.silent == "norm":
        return plain and torch.equal(now, leaf)
    if slot.silent == "other" and plain and now.dim() == 1 and now.is_floating_point():
        return torch.equal(now, leaf)
    return True


def _private(leaf: Tensor) -> tuple[Tensor, int]:
    with torch.inference_mode(False):  # what is made in inference mode counts no versions
        copy = leaf.clone()
    return copy, copy._version


def _may_write(blueprint: Blueprint) -> bool:
    """Whether forward may write attributes; torch's own layers do so only by hooks."""
    own = blueprint.cls.__module__.startswith("torch.nn.modules")
    return not own or any(name.endswith("hooks") for name in blueprint.attributes)


def _unchanged(attributes: dict[str, Any], values: tuple[Any, ...]) -> bool:
    try:
        return tuple(attributes.values()) == values  # identity first, at C speed
    except (RuntimeError, TypeError, ValueError):  # tensors that have no truth value
        return False


def follow(module: Any, path: Path) -> Any:
    """The module at a path."""
    for name in path:
        module = getattr(module, name)
    return module


def borrow(structure: Structure) -> Skeleton:
    """A skeleton for one call."""
    pool: Any = structure.variants.get("skeletons")
    try:
        return pool.pop()  # type: ignore[no-any-return]  # a list of skeletons
    except (AttributeError, IndexError):
        skeleton = Skeleton(structure)
        skeleton.counts = skeleton.holders()
        return skeleton


def put_back(structure: Structure, skeleton: Skeleton) -> None:
    """Keeps a skeleton for the next call, if it can serve one."""
    if skeleton.release():
        pool: Any = structure.variants
        pool.setdefault("skeletons", []).append(skeleton)
