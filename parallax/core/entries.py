"""The parts of a structure: places of leaves, constants, and nodes without their children."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from parallax._compat.opaque import constant_while_tracing
from parallax.core.constants import constant_key, identity_key
from parallax.core.flatten import LEAF, STATIC

__all__ = ["BUFFER", "PARAMETER", "PLAIN", "SLOT", "Leaf", "Local", "Note", "Static",
           "class_of_instances", "leaf_of", "local_of"]  # fmt: skip


@constant_while_tracing
class Leaf:
    """The place of one leaf, and its role."""

    __slots__ = ("role",)

    shape, depth, n_places = LEAF, 0, 1  # as a structure has them

    def __init__(self, role: str) -> None:
        self.role = role

    def __repr__(self) -> str:
        return f"<{self.role}>"

    def __reduce__(self) -> Any:
        return leaf_of, (self.role,)


PARAMETER = Leaf("parameter")
BUFFER = Leaf("buffer")
SLOT = Leaf("slot")  # a child slot that holds no module: None, or a leaf of a registered node
_LEAVES = {leaf.role: leaf for leaf in (PARAMETER, BUFFER, SLOT)}


def leaf_of(role: str) -> Leaf:
    """The ``Leaf`` of this role."""
    return _LEAVES[role]


@constant_while_tracing
class Static:
    """A constant in the place of a child, such as an activation function."""

    __slots__ = ("key", "value")

    shape, depth, n_places = STATIC, 0, 0

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.key = constant_key(value, where)

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Note(NamedTuple):
    """What travels with one module and is not compared."""

    mode: str = "train"
    frozen: tuple[int, ...] = ()  # offsets of the module's own leaves among all leaves in it
    path: str | None = None  # the module's path in its tree, for its rng and its effects
    copy: str = ""  # which of the copies that split() made
    watched: bool = False  # whether what the tree holds as rng is told of its calls
    gathered: str = ""  # the dimension of a mesh along which a call puts the leaves together
    stays_eval: bool = False  # whether it stays in mode "eval", whatever train and reset are told
    # Those along which sums are computed where a call ends, each with the dimension of activations
    # that is cut along it between such calls.
    summed: tuple[tuple[str, int | None], ...] = ()


PLAIN = Note()


@constant_while_tracing
@dataclass(slots=True, weakref_slot=True, eq=False, repr=False)
class Local:
    """One node without its children: its class, its constants and its note."""

    cls: type
    constants: tuple[Any, ...]
    key: Any
    note: Note

    def fits(self, other: Local) -> bool:
        """Whether two are the same apart from their notes."""
        return self is other or (self.cls is other.cls and self.key == other.key)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Local) and self.fits(other) and self.note == other.note

    def __hash__(self) -> int:
        return hash((self.cls, self.key, self.note))

    def __repr__(self) -> str:
        return f"{self.cls.__name__}{self.constants}"


_locals: WeakValueDictionary[Any, Local] = WeakValueDictionary()


def local_of(cls: type, constants: tuple[Any, ...], key: Any, note: Note = PLAIN) -> Local:
    """The interned ``Local`` of these parts."""
    name = (cls, *map(identity_key, constants), note)
    local = _locals.get(name)
    if local is None:
        local = _locals[name] = Local(cls, constants, key, note)
        if note.gathered or note.summed:
            from parallax.distributed.calls import communicate_in_calls  # it imports this file

            communicate_in_calls(cls)
    return local


def class_of_instances(local: Local) -> type:
    """The class of a node's instances: that of a watched module is a subclass of its own."""
    if local.note.watched:
        return local.cls.__layout__.watching or local.cls  # type: ignore[attr-defined]  # of modules alone
    return local.cls
