"""Tensors in objects that cannot be taken apart: transforms would return them still wrapped."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

from torch import Tensor, nn

from parallax._compat import functorch

__all__ = ["held_tensor", "refuse_hidden"]

_NEVER = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.FrameType)


def refuse_hidden(value: Any, what: str, path: str) -> None:
    """Raises if an object holds a tensor that belongs to the transform that is running.

    Raises:
        TypeError: naming the class and the remedies.
    """
    if held_tensor(value, inside=True) is None:
        return
    cls = type(value).__name__
    where = f"at {path} of its result" if path else "as its result"
    raise TypeError(
        f"{what}: the function returned a {cls} {where}, which holds a tensor and cannot be taken "
        f"apart: its tensors would come out as the transform's own. Return them in a tuple, a dict "
        f"or a dataclass; or say how a {cls} is taken apart: parallax.registry.register({cls}, ...)"
    )


def held_tensor(value: Any, *, inside: bool = False) -> Tensor | None:
    """A tensor that an object holds, at whatever depth; with ``inside`` one of a derivative."""
    stack, seen = [value], {id(value)}
    while stack:
        item = stack.pop()
        if isinstance(item, Tensor):
            if not inside or _is_inside(item):
                return item
            continue
        for below in _referents(item):
            if id(below) not in seen and not isinstance(below, _NEVER):
                seen.add(id(below))
                stack.append(below)
    return None


def _referents(item: Any) -> list[Any]:
    """What an object holds, as the garbage collector sees it; of a function not its globals.

    So attributes and items are found, and what iterators and generators go on with.
    """
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(item, numpy.ndarray):  # the collector does not look into it
        return list(item.flat) if item.dtype.hasobject else []
    if isinstance(item, types.FunctionType):
        return [item.__closure__, item.__defaults__, item.__kwdefaults__, item.__dict__]
    return gc.get_referents(item) if gc.is_tracked(item) else []


def _is_inside(tensor: Tensor) -> bool:
    if functorch.is_wrapped(tensor):
        return functorch.level_of(tensor) >= functorch.current_level()
    if tensor.grad_fn is not None:
        return True
    return tensor.requires_grad and not isinstance(tensor, nn.Parameter)
