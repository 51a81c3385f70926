"""The buffers of a skeleton: private copies for each call, and which of them it has changed."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from parallax._compat import functorch, modes

__all__ = ["NORMS", "Buffers", "Change", "Slot"]

Path = tuple[str, ...]
Change = tuple[Path, str, Any, bool]
"""The owner and name of a buffer, its new value, and whether one from an earlier call is in it."""

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
         nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)  # fmt: skip


class Slot:
    """A place of one buffer in a skeleton.

    Attributes:
        index: of its leaf among the unique leaves.
        home: the table it is in.
        owner: the path of the module that has it.
        silent: where to look for writes that count no version, as those of torch's ``batch_norm``
            into running statistics: in a ``"norm"`` layer, and in one-dimensional buffers of
            ``"other"`` layers. A ``"scaled"`` one is no buffer but an embedding's weight that
            ``max_norm`` scales in place: what was written there is forgotten.
    """

    __slots__ = ("home", "index", "kept", "name", "owner", "silent")

    def __init__(
        self, index: int, home: dict[str, Any], name: str, owner: Path, silent: str
    ) -> None:
        self.index = index
        self.home = home
        self.name = name
        self.owner = owner
        self.silent = silent
        self.kept = silent != "scaled"

    @staticmethod
    def of(index: int, node: nn.Module, name: str, owner: Path) -> Slot:
        """The slot of a buffer of a module."""
        silent = "other"
        if isinstance(node, NORMS):
            silent = "norm" if node.training and name != "num_batches_tracked" else ""
        return Slot(index, vars(node)["_buffers"], name, owner, silent)


class Buffers:
    """The buffers of one skeleton."""

    __slots__ = ("copies", "given", "later", "slots")

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.copies: dict[int, tuple[weakref.ref[Tensor], int, Tensor, int]] = {}
        self.given: list[tuple[Any, Any, int]] = []
        self.later: set[int] = set()  # the indices of leaves whose value an earlier call emitted

    def bind(self, leaves: tuple[Any, ...]) -> None:
        """Puts private copies of the leaves in their places."""
        plain = _plain()
        given: dict[int, tuple[Any, Any, int]] = {}
        self.given = []
        for slot in self.slots:
            made = given.get(slot.index)
            if made is None:
                leaf = leaves[slot.index]
                made = given[slot.index] = (leaf, *self._copy(slot, leaf, plain))
            slot.home[slot.name] = made[1]
            self.given.append(made)

    def go_on(self, owner: Path, values: dict[str, Tensor]) -> None:
        """Begins with what earlier calls emitted for a module, instead of with its leaves."""
        for slot, (leaf, _, _) in zip(self.slots, tuple(self.given), strict=True):
            value = values.get(slot.name) if slot.owner == owner else None
            if value is not None and slot.kept and value.shape == leaf.shape:
                self.later.add(slot.index)
                made = value, *_private(value, _plain())
                for place, other in enumerate(self.slots):  # each place of a tied one
                    if other.index == slot.index:
                        other.home[other.name] = made[1]
                        self.given[place] = made

    def _copy(self, slot: Slot, leaf: Any, plain: bool) -> tuple[Any, int]:
        """A private copy of a buffer, the one of the last call if nothing has changed."""
        if not isinstance(leaf, Tensor):
            return leaf, 0
        statistic = leaf.dim() <= 1 and leaf.is_floating_point()  # may be written silently
        if not (plain and slot.kept) or statistic or leaf.is_inference() or leaf.requires_grad:
            return _private(leaf, plain)
        known = self.copies.get(slot.index)
        if known is not None and known[0]() is leaf and known[1] == leaf._version:
            return known[2:]
        copy, version = _private(leaf, plain)
        copies, index = self.copies, slot.index
        there = weakref.ref(leaf, lambda _: copies.pop(index, None))
        copies[index] = (there, leaf._version, copy, version)
        return copy, version

    def changes(self) -> list[Change]:
        """What the call has changed."""
        changed: list[Change] = []
        plain = _plain()
        told: set[tuple[int, int]] = set()
        for slot, (leaf, before, version) in zip(self.slots, self.given, strict=True):
            now = slot.home.get(slot.name)
            if (slot.index, id(now)) in told:  # a tied buffer, written into where it stood before
                continue
            if now is before and (
                now is None
                or (
                    (now._version if plain else functorch.version_of(now)) == version
                    and _silently_same(slot, now, leaf, plain)
                )
            ):
                continue
            self.copies.pop(slot.index, None)
            if slot.kept and now is not None:
                changed.append((slot.owner, slot.name, now, slot.index in self.later))
                told.add((slot.index, id(now)))
        return changed

    def release(self) -> None:
        """Drops the references to the leaves."""
        for slot in self.slots:
            slot.home[slot.name] = None
        self.given = []
        self.later.clear()


def _plain() -> bool:
    """Whether tensors are what they seem: no transform wraps them, nothing is traced."""
    return not (functorch.transform_active() or modes.dispatch_mode_active())


def _silently_same(slot: Slot, now: Tensor, leaf: Tensor, plain: bool) -> bool:
    """Whether a buffer whose version was not counted up has indeed kept its value."""
    if slot.silent == "norm":
        return plain and _equal(now, leaf)
    if slot.silent == "other" and plain and now.dim() == 1 and now.is_floating_point():
        return _equal(now, leaf)
    return True


def _equal(now: Tensor, leaf: Tensor) -> bool:
    """Whether two tensors hold the same, which on the meta device is nothing."""
    if now.is_meta or torch.equal(now, leaf):
        return True
    return torch.allclose(now, leaf, rtol=0, atol=0, equal_nan=True)


def _private(leaf: Tensor, plain: bool) -> tuple[Tensor, int]:
    with torch.inference_mode(False):  # what is made in inference mode counts no versions
        copy = leaf.clone()
    return copy, copy._version if plain else functorch.version_of(copy)
