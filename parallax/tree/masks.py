"""Masks: trees of bools that say which leaves of another tree are meant; and trees of labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from parallax._compat.opaque import constant_while_tracing, real
from parallax._errors.arguments import shown
from parallax.core.fields import Lazy
from parallax.core.nodes import is_module
from parallax.core.structure import Structure
from parallax.tree import core
from parallax.tree.align import difference, misfit
from parallax.tree.chart import Chart, Entry
from parallax.tree.outside import is_leaf, item_paths, join

__all__ = ["Mask", "as_mask", "masks", "meant_by"]

T = TypeVar("T")


@constant_while_tracing
class Mask:
    """A tree of bools as a constant, which compares and hashes by value.

    Attributes:
        parts: per outermost module its structure, per other leaf ``None``.
        prefixes: the paths of these.
        flags: per unique leaf whether it is meant; holes are not.
    """

    __slots__ = ("flags", "parts", "prefixes")

    def __init__(
        self,
        parts: tuple[Structure | None, ...],
        prefixes: tuple[str, ...],
        flags: tuple[bool, ...],
    ) -> None:
        self.parts = parts
        self.prefixes = prefixes
        self.flags = flags

    def __eq__(self, other: object) -> bool:
        return type(other) is Mask and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash((self.prefixes, self.flags))

    def __reduce__(self) -> Any:
        return Mask, (self.parts, self.prefixes, self.flags)

    def __repr__(self) -> str:
        return f"<mask of {sum(self.flags)} of {len(self.flags)} leaves>"


def masks(labels: T) -> dict[Hashable, T]:
    """One mask for each label of a tree of labels.

    A mask is a tree of bools, a condition wherever ``tree.select`` takes one: in ``partition``, in
    the groups of an optimizer and in ``optim.Split``.

    Args:
        labels: a tree whose leaves are strings or other values that hash.

    Returns:
        For each label, in the order in which they are first met, a tree that is true where that
        label stands.

    Raises:
        TypeError: if a leaf is a tensor or does not hash.
        ValueError: if a label is nan, which equals no label, itself included.

    Example:
        >>> from parallax import nn, optim, tree
        >>> model = nn.Linear(3, 2).initialize(0)
        >>> labels = tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "other", model)
        >>> masks = tree.masks(labels)
        >>> list(masks), tree.select(model, masks["matrix"]).paths
        (['matrix', 'other'], ('weight',))
        >>> opt = optim.Split({masks["matrix"]: optim.Muon(), masks["other"]: optim.AdamW()})
    """
    found, spec = core.opened(labels)
    for path, leaf in zip(spec.paths, found, strict=True):
        if isinstance(leaf, (Tensor, Lazy)) or not _hashes(leaf):
            raise TypeError(
                f"tree.masks(labels=): {path or 'the tree'} is {shown(leaf)}, and a label is a "
                f"string or another value that hashes. Make labels of a tree: "
                f"tree.map(lambda leaf: 'matrix' if leaf.ndim == 2 else 'other', model)"
            )
        if leaf is not None and leaf != leaf:  # noqa: PLR0124  # only nan does not equal itself
            raise ValueError(
                f"tree.masks(labels=): {path or 'the tree'} is {shown(leaf)}, which equals no "
                f"label. Give it a name: tree.map(lambda x: 'none' if x != x else x, labels)"
            )
    made: dict[Hashable, T] = {}
    for label in dict.fromkeys([leaf for leaf in found if leaf is not None]):
        flags = [None if leaf is None else leaf == label for leaf in found]
        made[label] = spec.build(flags, bare=True)
    return made


def _hashes(leaf: Any) -> bool:
    try:
        hash(leaf)
    except TypeError:
        return False
    return True


def as_mask(what: Any) -> Mask | None:
    """A mask as a constant; ``None`` for what is no tree.

    Raises:
        TypeError: if a leaf of the tree is not a bool.
    """
    if type(what) is Mask:
        return what
    if not is_module(what) and (callable(what) or is_leaf(what)):
        return None
    found, spec = core.opened(what)
    wrong = [k for k, leaf in enumerate(found) if leaf is not None and not _is_flag(leaf)]
    if wrong:
        raise TypeError(_no_mask(what, spec.paths[wrong[0]], found[wrong[0]]))
    flags = tuple([leaf is not None and bool(leaf) for leaf in found])
    return _mask(tuple(spec.parts), tuple(item_paths(spec.outer)), flags)


@real
def _mask(
    parts: tuple[Structure | None, ...], prefixes: tuple[str, ...], flags: tuple[bool, ...]
) -> Mask:
    return Mask(parts, prefixes, flags)


def _is_flag(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.ndim == 0 and str(leaf.dtype) == "torch.bool"
    return isinstance(leaf, bool) or type(leaf).__name__ == "bool"  # of NumPy, too


def _no_mask(what: Any, path: str, leaf: Any) -> str:
    told = f"cannot select by {shown(what)}: a mask has a bool for each leaf, and "
    told += f"{path or 'it'} is {shown(leaf)}. "
    if isinstance(leaf, str) and not is_module(what):
        return (
            f"{told}Several conditions are arguments of their own: tree.select(model, 'a', 'b'). "
            f"For a tree of labels: tree.select(model, tree.masks(labels)[{leaf!r}])"
        )
    if isinstance(leaf, str):
        return f"{told}Of a tree of labels take one: tree.masks(labels)[{leaf!r}]"
    return f"{told}Make one of a tree: tree.map(lambda leaf: leaf.ndim == 2, model)"


def meant_by(chart: Chart, mask: Mask) -> list[Entry]:
    """The entries of the unique leaves that a mask means.

    Raises:
        ValueError: if the mask does not fit; the message names the first path.
    """
    tops = [entry.path for entry in chart.entries if not entry.keys]
    if tops != list(mask.prefixes):
        raise ValueError(_other_containers(tops, mask.prefixes))
    chosen: list[Entry] = []
    start = at = 0
    for part, theirs, prefix in zip(chart.parts, mask.parts, tops, strict=True):
        count = 1 if part is None else part.n_leaves
        given = mask.flags[at : at + (1 if theirs is None else theirs.n_leaves)]
        # One bool in the place of a module is for all of it.
        flags = given * count if theirs is None else _aligned(part, theirs, given, prefix)
        chosen += [chart.first[start + k] for k, flag in enumerate(flags) if flag]
        start += count
        at += len(given)
    return chosen


def _aligned(
    part: Structure | None, theirs: Structure, flags: Sequence[bool], prefix: str
) -> Sequence[bool]:
    """Per unique leaf of a module whether it is meant."""
    if part is None:
        raise ValueError(_misfit(prefix, "a leaf", f"a {theirs.cls.__name__}"))
    if theirs is not part and theirs.skeleton != part.skeleton:
        found = difference(part, theirs)
        if found is not None:
            raise ValueError(_misfit(join(prefix, found[0]), *found[1:]))
    places = flags if theirs.expand is None else [flags[k] for k in theirs.expand]
    for place, first in part.ties:
        if places[place] != places[first]:
            one, two = part.place_paths[first], part.place_paths[place]
            raise ValueError(
                f"the mask does not fit: {one} and {two} are one tied leaf, and the mask is "
                f"{places[first]} for the one and {places[place]} for the other"
            )
    return [places[place] for place in part.first]


def _misfit(path: str, ours: str, theirs: str) -> str:
    told = misfit(path, ours, theirs).removeprefix("the trees do not fit together: ")
    return f"the mask does not fit the tree: {told}. Make one of this tree: tree.map(fn, model)"


def _other_containers(ours: Sequence[str], theirs: Sequence[str]) -> str:
    for path in [*ours, *theirs]:
        if (path in ours) != (path in theirs):
            have = ["a leaf or module" if path in paths else "none" for paths in (ours, theirs)]
            return _misfit(path, *have)
    return _misfit("", f"leaves in the order {list(ours)}", f"{list(theirs)}")
