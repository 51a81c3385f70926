"""Flatten, unflatten and map over modules and over any pytree that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast, overload

import torch
from torch import Tensor

from parallax._errors.arguments import check_function, shown
from parallax.core.module_structure import leaves_of, spec_of
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.tree.align import align, misfit
from parallax.tree.arguments import check_trees, refuse_torch_module
from parallax.tree.mixing import refuse_rows, refuse_unregistered
from parallax.tree.outside import close, is_leaf, item_paths, opened_outside, up_to
from parallax.tree.treespec import LONE, TreeSpec, expand_of

__all__ = ["LONE", "TreeSpec", "beside", "columns", "expand_of", "flatten", "leaves", "map",
           "map_with_path", "named_leaves", "opened", "structure", "unflatten",
           "with_items"]  # fmt: skip

T = TypeVar("T")


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
    leaves, spec = opened(tree)
    return list(leaves), spec


def opened(tree: Any) -> tuple[Sequence[Any], TreeSpec]:
    """As ``flatten``; the leaves of a lone module as they are kept on it."""
    if is_module(tree):
        spec = TreeSpec(None, (spec_of(tree),), (tree._rng,))
        return leaves_of(tree), spec
    if isinstance(tree, Tensor):
        return (tree,), LONE
    children, outer = opened_outside(tree)
    if not any([is_module_class(cls) for cls in {type(child) for child in children}]):
        if len(children) == 1 and children[0] is tree:
            return children, LONE
        holes = (None,) * len(children)
        return children, TreeSpec(outer, holes, holes)
    leaves: list[Any] = []
    parts: list[Structure | None] = []
    rngs: list[Any] = []
    for child in children:
        if is_module(child):
            parts.append(spec_of(child))
            leaves += leaves_of(child)
            rngs.append(child._rng)
            continue
        if isinstance(child, torch.nn.Module):
            refuse_torch_module(child)
        parts.append(None)
        leaves.append(child)
        rngs.append(None)
    return leaves, TreeSpec(outer, tuple(parts), tuple(rngs))


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


def with_items(spec: TreeSpec, children: list[Any]) -> Any:
    """A tree with other outermost modules and leaves."""
    return children[0] if spec.outer is None else close(spec.outer, children)


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
    found, spec = opened(tree)
    return {path: leaf for path, leaf in zip(spec.paths, found, strict=True) if leaf is not None}


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


# With one or two trees the arguments of a lambda have a type for checkers that are strict.
@overload
def map(fn: Callable[[Any], Any], tree: T, /) -> T: ...
@overload
def map(fn: Callable[[Any, Any], Any], tree: T, other: Any, /) -> T: ...
@overload
def map(fn: Callable[..., Any], tree: T, *rest: Any) -> T: ...
def map(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
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
    if not callable(fn):
        check_function("tree.map", fn, "tree.map(torch.neg, model)")  # type: ignore[unreachable]  # with wrong types
    leaves: Sequence[Any]
    if is_module(tree):  # the usual case, with less
        leaves, structure = flatten_module(tree)
        leaves = _apply(fn, structure, leaves, [align(structure, other) for other in rest])
        return unflatten_module(structure, leaves, tree._rng)  # type: ignore[attr-defined, no-any-return]  # a module of T
    if is_module(fn) and callable(tree):
        raise TypeError("tree.map: the function comes first. Write tree.map(fn, model)")
    spec, leaves, others = columns(tree, rest)
    return cast(T, spec.build(_apply(fn, spec, leaves, others)))


def _apply(
    fn: Callable[..., Any],
    structure: TreeSpec | Structure,
    leaves: Sequence[Any],
    others: Sequence[Sequence[Any]],
) -> list[Any]:
    """``fn`` of the leaves beside each other."""
    try:
        if not others:
            return [None if leaf is None else fn(leaf) for leaf in leaves]
        if len(others) == 1:
            rows = zip(leaves, others[0], strict=True)
            return [
                leaf if leaf is None or other is None else fn(leaf, other) for leaf, other in rows
            ]
        return [
            leaf if leaf is None or any(other is None for other in others) else fn(leaf, *others)
            for leaf, *others in zip(leaves, *others, strict=True)
        ]
    except RuntimeError as error:
        if others:
            refuse_rows(error, "tree.map", structure.paths, leaves, *others)
        raise
    except (TypeError, AttributeError) as error:
        refuse_unregistered(error, "tree.map", structure.paths, leaves)
        raise


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
    leaves, spec = opened(tree)
    if is_module(tree):  # the usual case, with less
        return spec, leaves, [align(spec.parts[0], other) for other in rest]
    return spec, leaves, [_column(spec, tree, other) for other in rest]


def _column(spec: TreeSpec, tree: Any, other: Any) -> list[Any]:
    """The leaves of another tree, in the order of those of ``tree``."""
    leaves: list[Any] = []
    for structure, path, child in beside(spec, tree, other):
        leaves += (child,) if structure is None else align(structure, child, path)
    return leaves


def beside(spec: TreeSpec, tree: Any, other: Any) -> list[tuple[Any, str, Any]]:
    """What another tree has beside each outermost module and leaf of ``tree``.

    Returns:
        For each the structure of the module or ``None``, its dotted path, and what ``other`` has.

    Raises:
        ValueError: if they differ outside of modules; the message names the first path.
    """
    children = [other] if spec.outer is None else up_to(spec.outer, tree, other)
    paths = item_paths(spec.outer)
    for structure, path, child in zip(spec.parts, paths, children, strict=True):
        if isinstance(child, torch.nn.Module):
            refuse_torch_module(child)
        if structure is None and (is_module(child) or not is_leaf(child)):
            raise ValueError(misfit(path, "a leaf", f"a {type(child).__name__}"))
    return list(zip(spec.parts, paths, children, strict=True))


@overload
def map_with_path(fn: Callable[[str, Any], Any], tree: T, /) -> T: ...
@overload
def map_with_path(fn: Callable[[str, Any, Any], Any], tree: T, other: Any, /) -> T: ...
@overload
def map_with_path(fn: Callable[..., Any], tree: T, *rest: Any) -> T: ...
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
    spec, leaves, others = columns(tree, rest)
    try:
        leaves = [
            leaf if leaf is None or any(b is None for b in row) else fn(path, leaf, *row)
            for path, leaf, *row in zip(spec.paths, leaves, *others, strict=True)
        ]
    except RuntimeError as error:
        if rest:
            refuse_rows(error, "tree.map_with_path", spec.paths, leaves, *others)
        raise
    except (TypeError, AttributeError) as error:
        refuse_unregistered(error, "tree.map_with_path", spec.paths, leaves)
        raise
    return cast(T, spec.build(leaves))
