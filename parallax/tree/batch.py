"""Several trees as one with a leading dimension, for ``vmap`` and ensembles, and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax.core.entries import Note
from parallax.random import sources
from parallax.random.sources import member_source
from parallax.tree import core
from parallax.tree.align import misfit
from parallax.tree.arguments import check_tree, check_trees
from parallax.tree.mixing import refuse_mixed
from parallax.tree.places import Survey

__all__ = ["stack", "unstack"]

T = TypeVar("T")


def stack(trees: Iterable[T]) -> T:
    """Stacks trees of one structure into a tree whose leaves have a leading dimension.

    What is not a leaf must be the same in all: constants, modes, frozen marks. The result is a
    module like any other: ``torch.vmap`` over it calls every member. If the trees hold random
    states it holds a stack of keys; those of seeds and generators are others than each tree has,
    and so are the draws: for the same, hand out keys, ``model.train(random.key(seed))``.

    Args:
        trees: at least one tree; leaves of one place have one shape, dtype and device.

    Returns:
        The tree of ``torch.stack``-ed leaves.

    Raises:
        TypeError: if there is no tree, or a leaf is not a tensor, such as one without a value yet.
        ValueError: if constants, modes, frozen marks, holes, shapes or dtypes differ, or only
            some trees hold a random state; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.stack([{"a": torch.zeros(2)}, {"a": torch.ones(2)}])["a"].shape
        torch.Size([2, 2])
    """
    example = "tree.stack([model.initialize(seed) for seed in range(3)])"
    members = check_trees("tree.stack", trees, "trees", example)
    if not members:
        raise TypeError(f"tree.stack(trees=): give at least one tree: {example}")
    for member in members:
        check_tree("tree.stack", member, "trees")
    spec, found, others = core.columns(members[0], members[1:])
    _check_notes(members)
    columns = zip(spec.paths, found, *others, strict=True)
    leaves = [_stacked(path or "the root", column) for path, *column in columns]
    all_rngs = zip(*[core.structure(member).rngs for member in members], strict=True)
    rngs = tuple([sources.stack_sources(rngs) for rngs in all_rngs])
    return cast(T, core.unflatten(core.TreeSpec(spec.outer, spec.parts, rngs), leaves))


def _stacked(where: str, column: list[Any]) -> Any:
    holes = [leaf is None for leaf in column]
    if all(holes):
        return None
    if any(holes):
        ours, theirs = ("a hole", "a leaf") if holes[0] else ("a leaf", "a hole")
        raise ValueError(misfit(where, ours, theirs))
    for leaf in column:
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"stack: {where} is {leaf!r}, which is not a tensor. Initialize first: "
                f"tree.stack([model.initialize(seed) for seed in range(3)])"
            )
        for fact in ("shape", "dtype", "device"):
            mine, theirs = getattr(column[0], fact), getattr(leaf, fact)
            if mine != theirs:
                raise ValueError(misfit(where, f"{fact} {_text(mine)}", f"{fact} {_text(theirs)}"))
    try:
        return torch.stack(column)
    except RuntimeError as error:
        members = {f"tree {number}": [leaf] for number, leaf in enumerate(column, 1)}
        refuse_mixed(error, "tree.stack", [where], members)
        raise


def _text(fact: Any) -> str:
    return str(tuple(fact)) if isinstance(fact, torch.Size) else str(fact)


def _check_notes(members: list[Any]) -> None:
    """Raises if mode or frozen marks differ anywhere."""
    specs = [core.structure(member) for member in members]
    if not dynamo.is_compiling() and all(spec == specs[0] for spec in specs):
        return
    one = Survey(members[0])
    for two in map(Survey, members[1:]):
        for a, b in zip(one.chart.entries, two.chart.entries, strict=True):
            if a.is_module:
                ours, theirs = _mode_of(a.note), _mode_of(b.note)
                if ours != theirs:
                    raise ValueError(misfit(a.path or "the root", ours, theirs))
            elif a.cls is None:
                marks = [a.leaf in one.chart.frozen, b.leaf in two.chart.frozen]
                if marks[0] != marks[1]:
                    words = ["a frozen leaf" if mark else "a trained leaf" for mark in marks]
                    raise ValueError(misfit(a.path, *words))


def _mode_of(note: Note) -> str:
    return f"mode {note.mode!r}{', in which it stays' if note.stays_eval else ''}"


def unstack(tree: T) -> tuple[T, ...]:
    """The members of a stacked tree; the inverse of ``stack``.

    Args:
        tree: a tree whose leaves have one leading dimension in common.

    Returns:
        One tree per index of the leading dimension; their leaves are views.

    Raises:
        TypeError: if a leaf is not a tensor.
        ValueError: if there is no leaf, one has no dimension, or the leading sizes differ; the
            message names the paths.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> [member["a"].item() for member in tree.unstack({"a": torch.arange(3)})]
        [0, 1, 2]
    """
    check_tree("tree.unstack", tree)
    found, spec = core.opened(tree)
    size, first = 0, ""
    columns: list[Any] = []
    for path, leaf in zip(spec.paths, found, strict=True):
        if leaf is not None:
            where = path or "the root"
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"unstack: {where} is {leaf!r}, which is not a tensor. Give the result of "
                    f"tree.stack"
                )
            if leaf.ndim == 0:
                raise ValueError(
                    f"unstack: {where} has no dimension to take apart. Give what tree.stack made"
                )
            if first and leaf.shape[0] != size:
                raise ValueError(
                    f"unstack: the leading sizes differ: {first} has {size}, "
                    f"{where} has {leaf.shape[0]}"
                )
            size, first = leaf.shape[0], first or where
        columns.append(leaf)
    if not first:
        raise ValueError("unstack: the tree has no leaf to tell how many members it holds")
    rows = [None if leaf is None else leaf.unbind(0) for leaf in columns]
    members = []
    for index in range(size):
        rngs = tuple([member_source(rng, index) for rng in spec.rngs])
        leaves = [None if row is None else row[index] for row in rows]
        members.append(core.unflatten(core.TreeSpec(spec.outer, spec.parts, rngs), leaves))
    return tuple(members)
