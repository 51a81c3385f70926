"""The tensors that the functions of a rule reach beside their arguments.

A rule is about its arguments. What ``fwd`` makes of another tensor that is differentiated would
have no derivative by it, without a word, so it is refused.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from parallax._compat import functorch
from parallax.core.nodes import is_module
from parallax.func.differentiated import is_inexact
from parallax.func.held import held_by, names_of
from parallax.tree import core

__all__ = ["Reached", "Watch"]

_MOST = 500  # objects that are looked at, the nearest first
_ENDS = (
    type, types.ModuleType, types.BuiltinFunctionType, str, bytes, int, float, complex,
    type(None), torch.dtype, torch.device,
)  # fmt: skip
_LIBRARIES = ("torch", "parallax")

Name = tuple[dict[str, Any], str, Any]


class Reached:
    """What the two functions of a rule reach: the one for the result, and that of the derivative.

    Functions that reach nothing but functions and constants of their modules are looked through
    once. After that they are asked whether their names still stand for the same, which takes a
    third of a microsecond.
    """

    __slots__ = ("functions", "names")

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self.functions = forward, backward
        self.names: list[Name] | None = None

    def differentiated(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """The tensors of each that are differentiated; ``None`` where there are none."""
        if self.names is not None:
            for space, name, value in self.names:
                if space.get(name) is not value:
                    break
            else:
                return None
        forward, backward = [_Search(function) for function in self.functions]
        plain = forward.plain and backward.plain
        self.names = [*forward.names, *backward.names] if plain else None
        found = forward.differentiated(), backward.differentiated()
        return found if any(found) else None


class _Search:
    """A search through what a function closes over, is bound to, or names in its module.

    Attributes:
        names: what names stood for.
        plain: whether nothing but the names can come to stand for something else.
        tensors: what was found.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.names: list[Name] = []
        self.plain = True
        self.tensors: list[Tensor] = []
        queue: deque[Any] = deque([function])
        seen: set[int] = set()
        while queue and len(seen) < _MOST:
            item = queue.popleft()
            if isinstance(item, _ENDS) or id(item) in seen:
                continue
            seen.add(id(item))
            queue += self._below(item)

    def differentiated(self) -> list[Tensor]:
        """Those of the tensors that a derivative is taken by."""
        return [tensor for tensor in self.tensors if functorch.is_differentiated(tensor)]

    def _below(self, item: Any) -> Sequence[Any]:
        if isinstance(item, types.FunctionType):
            return self._below_function(item)
        self.plain = False
        if isinstance(item, Tensor):
            self.tensors.append(item)
            return ()
        if is_module(item):
            return list(core.opened(item)[0])
        if isinstance(item, nn.Module):
            return [*item.parameters(), *item.buffers()]
        return held_by(item)

    def _below_function(self, item: types.FunctionType) -> Sequence[Any]:
        own = held_by(item)
        self.plain &= not own
        if str(item.__globals__.get("__name__")).partition(".")[0] not in _LIBRARIES:
            named = [(space, name, space[name]) for space, name in names_of(item)]
            self.names += named
            own += [value for _, _, value in named]
        return own


class Watch(TorchFunctionMode):
    """Notes what is computed of some tensors, where it is not detached."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        self.kept = {id(tensor): tensor for tensor in tensors}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operation."""
        given = kwargs or {}
        found = func(*args, **given)
        if func not in _CUTS and any(map(self.knows, _lone([*args, *given.values()]))):
            self.kept |= {id(x): x for x in _lone([found]) if is_inexact(x)}
        return found

    def knows(self, value: Any) -> bool:
        """Whether a value is one of the tensors, or was computed of one."""
        return id(value) in self.kept


_CUTS = {Tensor.detach, torch.detach, Tensor.data.__get__}  # type: ignore[attr-defined]  # of C


def _lone(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _lone(value)
        else:
            yield value
