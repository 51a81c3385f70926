"""Flatten, unflatten and map over modules and over any pytree that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from parallax.core.arguments import check_function, shown
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.tree.align import align, misfit
from parallax.tree.arguments import check_trees, refuse_torch_module
from parallax.tree.mixing import refuse_mixed
from parallax.tree.outside import close, is_leaf, item_paths, join, opened_outside, up_to

__all__ = ["TreeSpec", "flatten", "leaves", "map", "map_with_path", "named_leaves", "structure",
           "unflatten"]  # fmt: skip

T = TypeVar("T")


class TreeSpec:
    """The structure of a tree: a module, or any pytree whose leaves may be modules.

    ``structure`` and ``flatten`` make it. It is hashable. Two are equal when classes, constants,
    containers, ties, modes and frozen marks are equal.

    Example:
        >>> from parallax import nn, tree
        >>> one, two = nn.Linear(2, 1).initialize(0), nn.Linear(2, 1).initialize(1)
        >>> tree.structure(one) == tree.structure(two), tree.structure(one) == tree.structure([one])
        (True, False)
        >>> tree.structure([one, two]).num_leaves
        4
    """

    __slots__ = ("outer", "parts", "rngs")

    def __init__(self, outer: Any, parts: tuple[Any, ...], rngs: tuple[Any, ...]) -> None:
        self.outer = outer  # what stands around; None for a lone module or leaf
        self.parts = parts  # per module its structure, per other leaf None
        self.rngs = rngs  # what each module holds as rng: carried, never compared

    def build(self, leaves: Sequence[Any], *, bare: bool = False) -> Any:
        """Builds a tree of this structure.

        Args:
            leaves: ``num_leaves`` leaves; their number is not checked.
            bare: whether the modules in it hold no rng.

        Returns:
            The tree.
        """
        if self.outer is None:
            part, rng = self.parts[0], None if bare else self.rngs[0]
            return leaves[0] if part is None else unflatten_module(part, leaves, rng)
        if self.parts.count(None) == len(self.parts):
            return close(self.outer, leaves)
        items, start = [], 0
        for part, rng in zip(self.parts, self.rngs, strict=True):
            if part is None:
                items.append(leaves[start])
                start += 1
            else:
                stop = start + part.n_leaves
                items.append(unflatten_module(part, leaves[start:stop], None if bare else rng))
                start = stop
        return close(self.outer, items)

    def with_rngs(self, rngs: Iterable[Any]) -> TreeSpec:
        """The same structure, whose modules hold other rngs.

        Args:
            rngs: one for each outermost module, and ``None`` for each leaf outside of modules.

        Returns:
            The structure.
        """
        return TreeSpec(self.outer, self.parts, tuple(rngs))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(other) is TreeSpec and self.parts == other.parts and self.outer == other.outer

    def __hash__(self) -> int:
        return hash(self.parts)

    def __repr__(self) -> str:
        if self.outer is not None:
            return f"TreeSpec({self.outer}, {self.parts})"
        return "TreeSpec(*)" if self.parts[0] is None else repr(self.parts[0])

    @property
    def num_leaves(self) -> int:
        """The number of leaves of a tree of this structure; holes count, tied leaves count once."""
        return sum([1 if part is None else part.n_leaves for part in self.parts])


LONE = TreeSpec(None, (None,), (None,))
"""The structure of a lone leaf."""


def expand_of(part: Structure | None) -> Sequence[int]:
    """For each place of a module (``None`` for a leaf outside of any) the index of its leaf."""
    if part is None:
        return [0]
    return range(part.n_places) if part.expand is None else part.expand


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Splits a tree into its leaves and its structure.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        The leaves and the structure. A leaf that stands in several places of a module comes
        once; a hole comes as ``None``.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, tree
        >>> class Point(Module):
        ...     at: Parameter
        >>> leaves, spec = tree.flatten({"p": Point(torch.ones(2))})
        >>> tree.unflatten(spec, [2 * leaf for leaf in leaves])["p"].at
        tensor([2., 2.])
    """
    found, spec = opened(tree)
    return list(found), spec


def opened(tree: Any) -> tuple[Sequence[Any], TreeSpec]:
    """As ``flatten``; the leaves of a lone module as they are kept on it."""
    if is_module(tree):
        found, part = flatten_module(tree)
        return found, TreeSpec(None, (part,), (tree._rng,))
    if isinstance(tree, Tensor):
        return (tree,), LONE
    items, outer = opened_outside(tree)
    if len(items) == 1 and items[0] is tree:
        if isinstance(tree, torch.nn.Module):
            refuse_torch_module(tree)
        return items, LONE
    if not any([is_module_class(cls) for cls in {type(item) for item in items}]):
        holes = (None,) * len(items)
        return items, TreeSpec(outer, holes, holes)
    out: list[Any] = []
    parts: list[Structure | None] = []
    rngs: list[Any] = []
    for item in items:
        if is_module(item):
            found, part = flatten_module(item)
            out.extend(found)
            parts.append(part)
            rngs.append(item._rng)
        else:
            if isinstance(item, torch.nn.Module):
                refuse_torch_module(item)
            out.append(item)
            parts.append(None)
            rngs.append(None)
    return out, TreeSpec(outer, tuple(parts), tuple(rngs))


def is_module_class(cls: type) -> bool:
    """Whether instances are modules, of Parallax or of torch."""
    return hasattr(cls, "__layout__") or issubclass(cls, torch.nn.Module)


def unflatten(spec: TreeSpec, leaves: Iterable[Any]) -> Any:
    """Builds a tree from its structure and leaves; the inverse of ``flatten``.

    Args:
        spec: what ``flatten`` or ``structure`` returned.
        leaves: as many leaves as it has places.

    Returns:
        A tree; no ``__init__``, converter or check of any module runs.

    Raises:
        TypeError: if ``spec`` is not a ``TreeSpec``.
        ValueError: if the number of leaves is another.

    Example:
        >>> import torch
        >>> from parallax import nn, tree
        >>> leaves, spec = tree.flatten(nn.Linear(3, 2).initialize(0))
        >>> tree.unflatten(spec, [leaf.mean() for leaf in leaves]).weight.shape
        torch.Size([])
    """
    if not isinstance(spec, TreeSpec):
        raise TypeError(
            f"tree.unflatten(spec=): expected a TreeSpec, got {shown(spec)}. Make one of a tree: "
            f"spec = tree.structure(tree)"
        )
    given = check_trees("tree.unflatten", leaves, "leaves", "tree.unflatten(spec, [leaf, ...])")
    if spec.num_leaves != len(given):
        raise ValueError(f"unflatten: the structure has {spec.num_leaves} leaves, got {len(given)}")
    return spec.build(given)


def with_items(spec: TreeSpec, items: list[Any]) -> Any:
    """A tree with other outermost modules and leaves."""
    return items[0] if spec.outer is None else close(spec.outer, items)


def leaves(tree: Any) -> list[Any]:
    """The leaves of a tree, without holes, and tied leaves once.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        A list of leaves, in the order of the fields.

    Example:
        >>> from parallax import nn, tree
        >>> model = nn.Linear(3, 2).initialize(0)
        >>> [leaf.shape for leaf in tree.leaves({"model": model})]
        [torch.Size([2, 3]), torch.Size([2])]
    """
    found = flatten_module(tree)[0] if is_module(tree) else flatten(tree)[0]
    return [leaf for leaf in found if leaf is not None]


def structure(tree: Any) -> TreeSpec:
    """The structure of a tree.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        A hashable value; equal for trees that differ in their leaves alone.

    Example:
        >>> from parallax import nn, tree
        >>> linear = nn.Linear(3, 2).initialize(0)
        >>> tree.structure(linear) == tree.structure(tree.zeros_like(linear))
        True
    """
    return flatten(tree)[1]


def map(fn: Callable[..., Any], tree: T, *rest: Any) -> T:  # noqa: A001  # named as in every tree library
    """A tree of the same structure that holds ``fn`` of every leaf.

    Args:
        fn: takes a leaf of ``tree`` and one of each further tree to a new leaf.
        tree: a module, or any pytree that holds modules and tensors.
        *rest: trees of the same skeleton. Modes and frozen marks may differ; ``tree``'s stay.

    Returns:
        The tree of results. ``fn`` is not called on a hole, which stays one; where a later tree
        has a hole, the leaf of ``tree`` stays.

    Raises:
        ValueError: if a later tree has another skeleton; the message names the first path.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.map(torch.add, {"a": torch.ones(1)}, {"a": torch.ones(1)})
        {'a': tensor([2.])}
    """
    check_function("tree.map", fn, "tree.map(torch.neg, model)")
    if is_module(tree):
        found, part = flatten_module(tree)
        others = [align(part, other) for other in rest]
        try:
            made = _apply(fn, found, others)
        except RuntimeError as error:
            names = ["the first tree", *[f"tree {k + 2}" for k in range(len(rest))]]
            lists = dict(zip(names, [found, *others], strict=True))
            refuse_mixed(error, "tree.map", part.paths, lists)
            raise
        return unflatten_module(part, made, tree._rng)  # type: ignore[attr-defined, no-any-return]  # a module of T
    return cast(T, _map_outer(fn, tree, rest))


def _apply(
    fn: Callable[..., Any], first: Sequence[Any], others: Sequence[Sequence[Any]]
) -> list[Any]:
    if not others:
        return [None if a is None else fn(a) for a in first]
    if len(others) == 1:
        return [
            a if a is None or b is None else fn(a, b) for a, b in zip(first, others[0], strict=True)
        ]
    return [
        a if a is None or any(b is None for b in bs) else fn(a, *bs)
        for a, *bs in zip(first, *others, strict=True)
    ]


def columns(tree: Any, rest: Sequence[Any]) -> tuple[TreeSpec, Sequence[Any], list[Sequence[Any]]]:
    """Takes several trees of one skeleton apart, leaf beside leaf.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        rest: trees of the same skeleton.

    Returns:
        The structure and the leaves of ``tree``, and of each further tree the leaves in that order;
        those of a lone module as they are kept on it.

    Raises:
        ValueError: if a later tree has another skeleton; the message names the first path.
    """
    found, spec = opened(tree)
    if is_module(tree):  # the usual case, with less
        return spec, found, [align(spec.parts[0], other) for other in rest]
    others: list[Sequence[Any]] = []
    for other in rest:
        row: list[Any] = []
        for part, path, item in beside(spec, tree, other):
            row += [item] if part is None else align(part, item, path)
        others.append(row)
    return spec, found, others


def beside(spec: TreeSpec, tree: Any, other: Any) -> list[tuple[Any, str, Any]]:
    """What another tree has beside each outermost module and leaf of ``tree``.

    Returns:
        For each the structure of the module or ``None``, its dotted path, and what ``other`` has.

    Raises:
        ValueError: if they differ outside of modules; the message names the first path.
    """
    if spec.outer is None:
        triples = [(spec.parts[0], "", other)]
    else:
        items = up_to(spec.outer, tree, other)
        triples = list(zip(spec.parts, item_paths(spec.outer), items, strict=True))
    for part, path, item in triples:
        if isinstance(item, torch.nn.Module):
            refuse_torch_module(item)
        if part is None and (is_module(item) or not is_leaf(item)):
            raise ValueError(misfit(path, "a leaf", f"a {type(item).__name__}"))
    return triples


def _map_outer(fn: Callable[..., Any], tree: Any, rest: tuple[Any, ...]) -> Any:
    spec, found, others = columns(tree, rest)
    return spec.build(_apply(fn, found, others))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by dotted path, as ``named_parameters`` and ``named_buffers`` name them.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        Paths to leaves, holes left out; a tied leaf under its first path.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.named_leaves({"a": [torch.zeros(())]})
        {'a.0': tensor(0.)}
    """
    return {path: leaf for path, leaf in with_paths(tree) if leaf is not None}


def map_with_path(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """As ``map``, with the dotted path of each leaf as ``fn``'s first argument.

    Args:
        fn: takes a path, a leaf of ``tree`` and one of each further tree to a new leaf.
        tree: a module, or any pytree that holds modules and tensors.
        *rest: trees of the same skeleton.

    Returns:
        The tree of results.

    Raises:
        ValueError: if a later tree has another skeleton.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.map_with_path(lambda path, x: path, {"a": torch.ones(1)})
        {'a': 'a'}
    """
    check_function("tree.map_with_path", fn, "tree.map_with_path(lambda path, leaf: leaf, model)")
    names = unflatten(structure(tree), [path for path, _ in with_paths(tree)])
    return map(lambda leaf, path, *others: fn(path, leaf, *others), tree, names, *rest)


def with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Every unique leaf or hole with its dotted path."""
    if is_module(tree):
        found, part = flatten_module(tree)
        return list(zip(part.paths, found, strict=True))
    pairs = []
    for prefix, item in items_with_paths(tree):
        inner = with_paths(item) if is_module(item) else [("", item)]
        pairs += [(join(prefix, path), leaf) for path, leaf in inner]
    return pairs


def items_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The outermost modules and leaves of a tree, each with its dotted path."""
    if is_module(tree):
        return [("", tree)]
    items, outer = opened_outside(tree)
    for item in items:
        if isinstance(item, torch.nn.Module):
            refuse_torch_module(item)
    return list(zip(item_paths(outer), items, strict=True))
