"""Classes of tensors with functions of their own, and what torch's functions are called with."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["functions_named", "is_ordinary", "without_memory"]

T = TypeVar("T", bound=Tensor)

_EMPTY = torch.empty(0)
_OWNERS: tuple[Any, ...] = (torch, Tensor, torch.special, F, torch._C._nn)
_ordinary: Any = Tensor.__torch_function__


def without_memory(cls: type[T]) -> T:
    """A tensor of a class that answers every function of torch itself; a third of a view's time."""
    made: T = Tensor._make_subclass(cls, _EMPTY)
    return made


def is_ordinary(cls: Any) -> bool:
    """Whether functions of torch do with a class of tensors what they do with all."""
    own = cls.__torch_function__
    if own is torch._C._disabled_torch_function_impl:
        return True
    return getattr(own, "__func__", None) is _ordinary.__func__


def functions_named(name: str) -> list[Any]:
    """The functions and methods of torch of a name, as ``__torch_function__`` gets them."""
    found = [getattr(owner, name, None) for owner in _OWNERS]
    return [function for function in found if function is not None]
