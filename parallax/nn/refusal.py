"""What a layer says to an input that does not fit: where it stands, what it expects, what came."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

from torch import Tensor

from parallax._compat.dynamo import is_compiling
from parallax.nodes import is_module

__all__ = ["ends_with", "name_in", "refuse", "where"]


def ends_with(value: Any, *sizes: int) -> bool:
    """Whether a value is a tensor whose last dimensions have these sizes."""
    return isinstance(value, Tensor) and value.shape[-len(sizes) :] == sizes


def refuse(layer: Any, expected: str, given: Any, name: str = "input") -> NoReturn:
    """Raises the error of an input that does not fit.

    Args:
        layer: the module that was called.
        expected: the shape or kind of thing it takes, such as ``"(*, 3)"``.
        given: what came.
        name: the argument's.

    Raises:
        TypeError: if what came is no tensor.
        ValueError: if it is one.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{where(layer)}: {name} must be a tensor, got {type(given).__name__}")
    raise ValueError(f"{where(layer)}: expected {name} of shape {expected}, got {_shape(given)}")


def name_in(error: Exception, layer: Any) -> None:
    """Adds the place of a layer to an error of torch's that no shape explains, a dtype say."""
    error.add_note(f"This came from {where(layer)}.")


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}{',' if tensor.dim() == 1 else ''})"


def where(layer: Any) -> str:
    """What a layer is called in an error: its path in the model that called it, and its class.

    A module does not know what holds it. But an error is raised inside the calls of everything
    that does, so the tree is looked for among the variables of the callers: the outermost one
    that holds this very module gives the path. It costs nothing until something is wrong.
    """
    if is_compiling():
        return type(layer).__name__
    path, root = "", layer
    seen: set[int] = set()
    frame: Any = sys._getframe(1)
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if is_module(value) and value is not root and id(value) not in seen:
                seen.add(id(value))
                found = _path_to(layer, value)
                if found:
                    path, root = found, value
        frame = frame.f_back
    name = type(layer).__name__
    return f"{type(root).__name__}.{path} ({name})" if path else name


def _path_to(layer: Any, root: Any) -> str | None:
    """The dotted path of a module below another, by identity."""
    stack: list[tuple[Any, str]] = [(root, "")]
    while stack:
        value, path = stack.pop()
        if value is layer:
            return path
        if is_module(value):
            below = [(name, getattr(value, name)) for name in type(value).__layout__.children]
        elif isinstance(value, dict):
            below = list(value.items())
        elif isinstance(value, tuple):
            below = list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
        else:
            continue
        stack += [(item, f"{path}.{key}" if path else str(key)) for key, item in below]
    return None
