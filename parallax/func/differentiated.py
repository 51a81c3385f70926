"""Which leaves of an argument a derivative is taken with respect to, and trees around others.

In a module these are the floating and complex ``Parameter`` leaves that are not frozen; outside of
modules, every floating or complex tensor. They are said to *move*; all other leaves stay put: the
rate in a pair of a model and a rate, or a key. Where a leaf stays put, the derivative has a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.structure import Structure
from parallax.func.hidden import held_tensor
from parallax.tree import core
from parallax.tree.carriers import carried
from parallax.tree.leaves import all_floating
from parallax.tree.outside import is_plain

__all__ = ["INEXACT", "Moving", "Opened", "is_inexact", "path_of", "paths_of"]


def _inexact() -> frozenset[torch.dtype]:
    found = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    return frozenset(d for d in found if d.is_floating_point or d.is_complex)


INEXACT = _inexact()
"""The floating and complex dtypes, which can be differentiated."""


def is_inexact(value: Any) -> bool:
    """Whether a value is a floating or complex tensor."""
    return isinstance(value, Tensor) and value.dtype in INEXACT


def filled(leaves: list[Any], places: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The leaves, with values written into some places."""
    for place, value in zip(places, values, strict=True):
        leaves[place] = value
    return leaves


class Opened:
    """A tree taken apart into some chosen leaves and all the rest.

    Attributes:
        tree: the tree.
        leaves: all leaves, those of modules one by one, ties once, holes as ``None``.
        places: the indices of the chosen leaves.
        values: the chosen leaves.
        spec: the structure.
    """

    __slots__ = ("leaves", "places", "spec", "tree", "values")

    tree: Any
    spec: core.TreeSpec
    leaves: Sequence[Any]
    places: Sequence[int]
    values: list[Tensor]

    def around(self, values: Sequence[Any]) -> Any:
        """The tree with other values for the chosen leaves."""
        if len(values) == len(self.leaves):
            return self.spec.build(values)
        return self.spec.build(filled(list(self.leaves), self.places, values))

    def alone(self, values: Sequence[Any]) -> Any:
        """A tree of the same structure that holds these values and holes everywhere else."""
        if len(values) == len(self.leaves):
            return self.spec.build(values, bare=True)
        return self.spec.build(filled([None] * len(self.leaves), self.places, values), bare=True)

    def row(self, other: Any) -> Sequence[Any]:
        """What another tree has in the place of each leaf."""
        if isinstance(self.tree, Tensor):
            return [other]
        return core.columns(self.tree, (other,))[2][0]

    def beside(self, other: Any, what: str, kind: str) -> list[Any]:
        """What another tree has in the place of each chosen leaf, zeros for its holes.

        Args:
            other: a tree of the same skeleton.
            what: what is being called, for error messages.
            kind: what ``other`` holds, for error messages: tangents, cotangents or series.

        Raises:
            ValueError: if the trees or the shapes of two leaves do not fit.
        """
        try:
            row = self.row(other)
        except ValueError as error:
            raise ValueError(f"{what}: the {kind}: {error}") from None
        found = []
        for place, value in zip(self.places, self.values, strict=True):
            leaf = row[place]
            if leaf is None:
                leaf = torch.zeros_like(value)
            elif not isinstance(leaf, Tensor) or leaf.shape != value.shape:
                got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
                raise ValueError(
                    f"{what}: the {kind}: {path_of(self.tree, place) or 'the tensor'} has shape "
                    f"{tuple(value.shape)} and was given {got}"
                )
            elif kind != "cotangents" and leaf.dtype is not value.dtype:  # they are cast
                raise ValueError(
                    f"{what}: the {kind}: {path_of(self.tree, place) or 'the tensor'} has dtype "
                    f"{value.dtype} and was given {leaf.dtype}. Cast it: x.to({value.dtype})"
                )
            found.append(leaf)
        return found


class Moving(Opened):
    """An argument, its leaves chosen that a derivative is taken with respect to."""

    __slots__ = ()

    def __init__(self, tree: Any, what: str, index: int) -> None:
        self.tree = tree
        self.leaves, self.spec = leaves, spec = core.opened(tree)
        part = spec.parts[0]
        if spec.outer is None and type(part) is Structure:  # the usual case, with less
            self.places = part.trained
            whole = len(self.places) == len(leaves)
            self.values = list(leaves) if whole else [leaves[place] for place in self.places]
            if self.places and all_floating(self.values):
                return
        try:
            self.places = _moving_in(leaves, spec.parts)
        except _RefusedError as refused:
            raise refused.at(tree, f"{what}, argument {index}") from None
        if not self.places:
            raise _nothing_moves(tree, leaves, spec.parts, f"{what}, argument {index}")
        self.values = [leaves[place] for place in self.places]


def paths_of(tree: Any) -> list[str]:
    """The dotted path of every leaf and hole, in the order of ``core.flatten``."""
    return core.structure(tree).paths


def path_of(tree: Any, place: int) -> str:
    """The dotted path of a leaf: ``MLP.first.weight`` in a module, ``['net'].weight`` outside."""
    if isinstance(tree, Tensor):
        return ""
    path = paths_of(tree)[place]
    return f"{type(tree).__name__}.{path}" if is_module(tree) else path


class _RefusedError(Exception):
    """A leaf that cannot move; carries its place, so that only an error pays for paths."""

    def __init__(self, place: int, leaf: Any, *, module: bool) -> None:
        self.place = place
        self.leaf = leaf
        self.module = module

    def at(self, tree: Any, where: str) -> Exception:
        path = path_of(tree, self.place)
        name = f"{where}: {path}" if path else where
        if isinstance(self.leaf, Lazy):
            return UninitializedError(
                f"{name} is not initialized: there is nothing to differentiate yet. "
                f"Initialize first: module = module.initialize(rng)"
            )
        if isinstance(self.leaf, Tensor):
            kind = f"a tensor of {self.leaf.dtype}, and only floating and complex ones"
            if self.module:
                return TypeError(
                    f"{name} is a Parameter that holds {kind} can be differentiated. Declare it "
                    f"'{path.rsplit('.', 1)[-1]}: Buffer', or freeze it: "
                    f"module = tree.select(module, {path.split('.', 1)[-1]!r}).freeze()"
                )
            return TypeError(
                f"{name} is {kind} can be differentiated. Pass it as an argument of its own, "
                f"outside of argnums"
            )
        told = carried(self.leaf)
        if told is not None:
            return TypeError(f"{name} is {told}")
        return TypeError(
            f"{name} is a {type(self.leaf).__name__}, and only tensors can be differentiated. "
            f"Pass it as an argument of its own, outside of argnums"
        )


def _moving(leaves: Sequence[Any], trainable: Sequence[bool], start: int = 0) -> list[int]:
    """The places of a module's leaves that move, where its first leaf stands at ``start``."""
    places = []
    for place, (leaf, trains) in enumerate(zip(leaves, trainable, strict=True), start):
        if trains and leaf is not None:
            if not (isinstance(leaf, Tensor) and leaf.dtype in INEXACT):
                raise _RefusedError(place, leaf, module=True)
            places.append(place)
    return places


def _moving_outside(leaves: Sequence[Any], place: int) -> list[int]:
    """The place of a leaf if it moves; a number, an integer tensor, a function does not."""
    leaf = leaves[place]
    if is_inexact(leaf):
        return [place]
    if not is_plain(leaf) and not dynamo.is_compiling() and held_tensor(leaf) is not None:
        raise _RefusedError(place, leaf, module=False)
    return []


def _moving_in(leaves: Sequence[Any], parts: Sequence[Any]) -> list[int]:
    places: list[int] = []
    start = 0
    for part in parts:
        if part is None:
            places += _moving_outside(leaves, start)
            start += 1
        else:
            trainable = part.trainable
            stop = start + len(trainable)
            places += _moving(leaves[start:stop], trainable, start)
            start = stop
    return places


def _nothing_moves(tree: Any, leaves: Sequence[Any], parts: Sequence[Any], where: str) -> Exception:
    if not is_module(tree):
        if any([part is not None for part in parts]):
            return ValueError(
                f"{where}: nothing in it can be differentiated: each leaf of its modules is frozen "
                f"or a Buffer. Unfreeze some: module = tree.select(module, path).unfreeze()"
            )
        for place, leaf in enumerate(leaves):
            if leaf is not None:
                return _RefusedError(place, leaf, module=False).at(tree, where)
        return ValueError(f"{where}: there is no tensor to differentiate with respect to")
    paths = [path for path, leaf in zip(paths_of(tree), leaves, strict=True) if leaf is not None]
    if not paths:
        return ValueError(
            f"{where}: {type(tree).__name__} holds no tensors at all, so it has no gradient"
        )
    return ValueError(
        f"{where}: {type(tree).__name__} has no trainable leaf: each of its {len(paths)} leaves is "
        f"frozen or a Buffer ({', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}). "
        f"Unfreeze some: module = tree.select(module, path).unfreeze()"
    )
