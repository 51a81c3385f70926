"""Casting, moving and measuring all leaves of a tree."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import optree
import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import device_of, shown
from parallax.core.fields import Lazy, UninitializedError
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE
from parallax.random import Key
from parallax.tree import core
from parallax.tree.arguments import check_tree
from parallax.tree.leaves import all_floating, is_array, is_inexact
from parallax.tree.outside import is_item
from parallax.tree.places import Survey

__all__ = ["nbytes", "size", "to", "zeros_like"]

T = TypeVar("T")


def to(
    tree: T, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None
) -> T:
    """The tree on another device, or in another precision.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        device: where all tensors go, except keys, which live on the CPU.
        dtype: of floating leaves; complex leaves get the complex dtype of that precision.
            Integer leaves and keys keep theirs.

    Returns:
        The tree; leaves that fit already are shared. Ties stay.

    Raises:
        TypeError: if ``dtype`` is not a floating or complex dtype.
        ValueError: if there is no such device here.
        UninitializedError: if declarations are to be moved; ``initialize`` takes a device.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> half = tree.to({"w": torch.ones(2), "n": torch.arange(2)}, dtype=torch.float16)
        >>> half["w"].dtype, half["n"].dtype
        (torch.float16, torch.int64)
    """
    check_tree("tree.to", tree)
    if dtype is not None:
        _check_dtype(dtype)
    if device is None:
        return core.map(lambda leaf: _cast(leaf, dtype), tree)
    target = _device(device)
    if is_module(tree):
        return cast(T, _moved(tree, target, dtype))
    moved = optree.tree_map(
        lambda item: item if type(item) is Key else _moved(item, target, dtype),
        cast(Any, tree),
        is_leaf=lambda item: is_item(item) or type(item) is Key,
        none_is_leaf=True,
        namespace=NAMESPACE,
    )
    return cast(T, moved)


def _moved(tree: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A module, or a single leaf, with all but keys moved and cast."""
    survey = Survey(tree)
    leaves = [
        leaf if entry.role == "key" else _move(leaf, device, dtype)
        for entry, leaf in zip(survey.chart.first, survey.leaves, strict=True)
    ]
    return core.unflatten(survey.spec, leaves)


def _move(leaf: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    if isinstance(leaf, Lazy):
        raise UninitializedError(
            f"{leaf.owner or repr(leaf)} has no value to move yet. Give the device when it gets "
            f"one: module.initialize(rng, device={str(device)!r})"
        )
    leaf = _cast(leaf, dtype)
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _cast(leaf: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None or not is_array(leaf):
        return leaf
    if not leaf.is_floating_point() and not leaf.is_complex():
        return leaf
    final = dtype.to_complex() if leaf.is_complex() else dtype
    if isinstance(leaf, Tensor):
        return leaf.to(final)
    declared = type(leaf)(leaf.shape, leaf.init, dtype=final)
    declared.owner = leaf.owner
    return declared


def _check_dtype(dtype: Any) -> None:
    inexact = isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)
    if not inexact:
        raise TypeError(
            f"tree.to(dtype=): expected a floating or complex dtype such as torch.float16, "
            f"got {shown(dtype)}; integer leaves are never cast"
        )


def _device(device: Any) -> torch.device:
    if isinstance(device, torch.dtype):
        raise TypeError(
            f"tree.to(device=): got {device}, a dtype; write tree.to(tree, dtype={device})"
        )
    return device_of("tree.to", device)


def zeros_like(tree: T) -> T:
    """Zeros in the place of every floating and complex leaf.

    Args:
        tree: a module, or any pytree that holds modules and tensors.

    Returns:
        The tree; integer leaves and keys are as they were, holes stay holes.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.zeros_like({"w": torch.ones(2)})
        {'w': tensor([0., 0.])}
    """
    check_tree("tree.zeros_like", tree)
    found, spec = core.opened(tree)
    if not dynamo.is_compiling() and all_floating(found):
        # Without a function of our own in between: 1.15 of torch's calls alone, instead of 1.45.
        return cast(T, spec.build([*map(torch.zeros_like, found)]))
    return core.map(lambda leaf: torch.zeros_like(leaf) if is_inexact(leaf) else leaf, tree)


def size(tree: Any) -> int:
    """The number of elements of all leaves, tied leaves counted once.

    Args:
        tree: a module, or any pytree that holds modules and tensors; declarations count.

    Returns:
        The sum of ``numel`` of all leaves.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.size({"w": torch.ones(2, 3), "b": torch.ones(2)})
        8
    """
    check_tree("tree.size", tree)
    return sum([leaf.numel() for leaf in core.leaves(tree) if is_array(leaf)])


def nbytes(tree: Any) -> int:
    """The number of bytes of all leaves, tied leaves counted once.

    Args:
        tree: a module, or any pytree that holds modules and tensors; declarations count.

    Returns:
        The sum of ``numel`` times the bytes per element of all leaves.

    Example:
        >>> import torch
        >>> from parallax import tree
        >>> tree.nbytes({"w": torch.ones(2, 3)})
        24
    """
    check_tree("tree.nbytes", tree)
    return sum([leaf.numel() * leaf.dtype.itemsize for leaf in core.leaves(tree) if is_array(leaf)])
