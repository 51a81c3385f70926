"""Errors of inputs that do not fit a layer: its path, what was expected, and what was given."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from torch import Tensor

from parallax._compat.autograd import is_view
from parallax._compat.dynamo import is_compiling
from parallax._compat.shards import is_mixing, note_missing_rule, shown
from parallax.core.error_paths import nodes_below, path_to
from parallax.core.nodes import is_module
from parallax.core.registry import flatten_module

__all__ = ["ends_with", "name_in", "refuse", "require_tensor", "where"]


def ends_with(value: Any, *sizes: int) -> bool:
    """Whether a value is a tensor whose last dimensions have these sizes."""
    return isinstance(value, Tensor) and value.shape[-len(sizes) :] == sizes


def refuse(layer: Any, expected: str, given: Any, name: str = "input") -> NoReturn:
    """Raises the error of an input that does not fit.

    Args:
        layer: the module that was called.
        expected: the shape or kind of thing it takes, such as ``"(*, 3)"``.
        given: what was given.
        name: the name of the argument.

    Raises:
        TypeError: if what came is not a tensor.
        ValueError: if it is one.
    """
    if not isinstance(given, Tensor):
        raise TypeError(
            f"{where(layer)}: {name} must be a tensor, got {type(given).__name__}. "
            f"Give one of shape {expected}"
        )
    raise ValueError(f"{where(layer)}: expected {name} of shape {expected}, got {_shape(given)}")


def require_tensor(layer: Any, given: Any, name: str = "input") -> None:
    """Raises unless the input of a layer is a tensor, or acts as one.

    Args:
        layer: the module that was called.
        given: what was given. Classes with ``__torch_function__`` act as tensors, such as the
            proxies of torch.fx.
        name: the name of the argument.

    Raises:
        TypeError: if it is anything else.
    """
    if not hasattr(type(given), "__torch_function__"):
        refuse(layer, "(*)", given, name)


def name_in(error: Exception, layer: Any) -> None:
    """Adds the path of a layer to an error of torch that is not about shapes, such as dtypes."""
    error.add_note(f"This came from {where(layer)}.")
    note_missing_rule(error)
    if is_mixing(error):
        leaves, structure = flatten_module(layer)
        held = [
            f"{path}: {shown(leaf)}" for path, leaf in zip(structure.paths, leaves, strict=True)
        ]
        error.add_note(
            f"Its leaves are {', '.join(held)}. Place all leaves of a model with "
            f"plan.apply(model), and give it batches from plan.batches(loader)."
        )


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}{',' if tensor.dim() == 1 else ''})"


def where(layer: Any) -> str:
    """The name of a layer in an error: its path in the model that called it, and its class.

    Modules have no parent pointer. On an error the variables of the callers are searched: the
    outermost tree that holds this module gives the path. Some modules call a copy of a module they
    hold. They say where its original is, and the search goes on for that. Nothing is searched
    before an error.
    """
    if is_compiling():
        return type(layer).__name__
    target, below = layer, ""  # what is searched for, and the path of the layer in it
    root, path = layer, ""
    seen: set[int] = set()
    frame: Any = sys._getframe(1)
    while frame is not None:
        names = frame.f_locals
        for owner, place, copy in _copies(names):
            inner = path_to(target, copy)
            if inner is not None:
                target, below = owner, _joined(place, inner, below)
                root, path = owner, below
                seen.clear()
        for value in list(names.values()):
            if is_module(value) and id(value) not in seen and path_to(value, root) is None:
                seen.add(id(value))
                found = path_to(target, value)
                if found is not None:
                    root, path = value, _joined(found, below)
                elif (original := _original(root, value)) is not None:
                    target, below = original, path
                    root, path = value, _joined(path_to(original, value), below)
        frame = frame.f_back
    name = type(layer).__name__
    return f"{type(root).__name__}.{path} ({name})".replace(".[", "[") if path else name


def _joined(*paths: Any) -> str:
    return ".".join([path for path in paths if path])


def _copies(names: dict[str, Any]) -> list[tuple[Any, str, Any]]:
    """The modules that a module's method made for a call: whose they are, their places, and they.

    Args:
        names: the variables of the method. Its class tells what they stand for, by the method
            ``__copies__`` of these variables.
    """
    owner = names.get("self")
    told = getattr(type(owner), "__copies__", None)
    return [] if told is None else [(owner, place, copy) for place, copy in told(names)]


def _original(copy: Any, root: Any) -> Any:
    """The module in ``root`` whose leaves a copy has, or views of them.

    Such copies are what ``effects.collect`` calls, and the blocks that a ``Stack`` hands out.
    """
    leaves = _leaves(copy)
    for _, value in nodes_below(root) if any([leaf is not None for leaf in leaves]) else ():
        if type(value) is type(copy):
            found = _leaves(value)
            pairs = zip(leaves, found, strict=False)
            if len(leaves) == len(found) and all([a is b or is_view(a, b) for a, b in pairs]):
                return value
    return None


def _leaves(module: Any) -> tuple[Any, ...]:
    """The leaves of a module; none while it is being made."""
    return () if module._spec is None else tuple(flatten_module(module)[0])
