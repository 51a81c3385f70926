"""Checks of trees and of what operations on them take."""

from __future__ import annotations

import math
import numbers
from typing import Any, NoReturn

import torch
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.core.fields import Lazy
from parallax.core.nodes import is_module
from parallax.tree.outside import is_leaf

__all__ = ["check_number", "check_order", "check_tree", "check_trees", "refuse_text",
           "refuse_torch_module"]  # fmt: skip


def check_tree(what: str, tree: Any, name: str = "tree") -> None:
    """Raises unless an argument is a module, a tensor, or a container.

    Raises:
        TypeError: if it is anything else, which would count as a tree without numbers.
    """
    if is_module(tree) or isinstance(tree, (Tensor, Lazy)):
        return
    if is_leaf(tree):
        raise TypeError(f"{what}({name}=): expected {_TREE}, got {shown(tree)}. {_remedy(tree)}")


def refuse_torch_module(module: torch.nn.Module) -> NoReturn:
    """Raises the error for a module of torch that stands in a tree."""
    raise TypeError(
        f"expected a tree of tensors, got one with {shown(module)}, whose parameters are no "
        f"leaves. {_remedy(module)}"
    )


def refuse_text(what: str, tree: Any) -> None:
    """Raises if the tree is text, which is what comes after it."""
    if isinstance(tree, str):
        raise TypeError(
            f"tree.{what}: the tree comes first, got {shown(tree)}. "
            f"Write tree.{what}(model, {tree!r})"
        )


_TREE = "a module, a tensor, or a container of them"


def _remedy(value: Any) -> str:
    if isinstance(value, torch.nn.Module):
        return "Make a tree of it: bridge.lift(module)"
    if value is None:
        return "Give the tree itself; None is a hole, and stands inside of one"
    if isinstance(value, (int, float, complex)):
        return f"Make a tensor of it: torch.tensor({value!r})"
    return "Give, for example, a model, or a dict of tensors: {'weight': torch.ones(2)}"


def check_number(what: str, name: str, value: Any, least: float | None = None) -> None:
    """Raises unless an argument is a number, or a tensor of no dimension.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is nan, or less than the least allowed where there is one.
    """
    if type(value) is int or type(value) is float or _is_number(value):
        if least is not None and not value >= least:
            raise ValueError(
                f"{what}({name}=): must be at least {least}, got {value!r}. Give a number such as "
                f"{name}=0.5"
            )
        return
    raise TypeError(
        f"{what}({name}=): expected a number or a tensor of no dimension, got {shown(value)}. "
        f"Give a number such as {name}=0.5"
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0
    if isinstance(value, bool):
        return False
    return isinstance(value, (numbers.Number, torch.SymInt, torch.SymFloat))


def check_order(what: str, p: Any) -> None:
    """Raises ``TypeError`` unless an argument can be the order of a norm."""
    if not isinstance(p, (int, float)) or math.isnan(p):
        raise TypeError(
            f"{what}(p=): expected a number, got {shown(p)}. Give the order of the norm, such as "
            f"p=2 or p=float('inf')"
        )


def check_trees(what: str, trees: Any, name: str, example: str) -> list[Any]:
    """Several trees as a list.

    Raises:
        TypeError: if they cannot be iterated over, or are one module.
    """
    if not is_module(trees) and not isinstance(trees, (str, torch.nn.Module)):
        try:
            return list(trees)
        except TypeError:
            pass
    raise TypeError(
        f"{what}({name}=): expected several trees in a list, got {shown(trees)}. Write {example}"
    )
