"""Classes of tensors with functions of their own, and what torch's functions are called with."""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = ["attention_in_steps", "calls_through", "functions_named", "is_ordinary", "replacing",
           "set_grad_enabled", "without_class", "without_memory"]  # fmt: skip

T = TypeVar("T", bound=Tensor)

_OWNERS: tuple[Any, ...] = (torch, Tensor, torch.special, F, torch._C._nn)
_ordinary: Any = Tensor.__torch_function__


def without_memory(cls: type[T], like: Tensor) -> T:
    """A tensor of a class that answers every function of torch itself, for one with numbers.

    It has the shape of that one, so that what looks at it without a function of torch, as the
    transforms of ``torch.func`` do, goes on until it meets a function.
    """
    made: T = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
    return made


def without_class(tensor: Tensor) -> Tensor:
    """A tensor of torch's own class; as it is if its class keeps more than the numbers of one.

    A sparse tensor stays as it is, too: it has no single memory that another could share.
    """
    wraps: bool = is_traceable_wrapper_subclass(tensor)  # else mypy has no tensor left
    keeps = wraps or type(tensor) is Tensor or tensor.layout is not torch.strided
    return tensor if keeps else tensor.as_subclass(Tensor)


def is_ordinary(cls: Any) -> bool:
    """Whether functions of torch do with a class of tensors what they do with all."""
    if cls is Tensor or cls is torch.nn.Parameter:  # dynamo cannot ask what they do
        return True
    own = cls.__torch_function__
    if own is torch._C._disabled_torch_function_impl:
        return True
    return getattr(own, "__func__", None) is _ordinary.__func__


def functions_named(name: str) -> list[Any]:
    """The functions and methods of torch of a name, as ``__torch_function__`` gets them."""
    found = [getattr(owner, name, None) for owner in _OWNERS]
    return [function for function in found if function is not None]


set_grad_enabled: Any = torch._C._set_grad_enabled
"""What ``torch.no_grad`` and its like call."""


class calls_through(TorchFunctionMode):  # noqa: N801  # a context manager, named as a function
    """Within it a function is called in place of each of torch's.

    Args:
        function: takes that of torch, its arguments and its keyword arguments to the result.
    """

    def __init__(self, function: Callable[[Any, Sequence[Any], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._function = function

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self._function(func, args, kwargs or {})


class replacing(TorchFunctionMode):  # noqa: N801  # as above
    """Within it some of torch's functions are replaced; also while dynamo traces.

    Args:
        functions: which ones.
        replacement: takes that of torch, its arguments and its keyword arguments to the result.
        check: is called with the same before any function.
    """

    def __init__(
        self, functions: Container[Any],
        replacement: Callable[[Any, Sequence[Any], dict[str, Any]], Any],
        check: Callable[[Any, Sequence[Any], dict[str, Any]], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._functions = functions
        self._replacement = replacement
        self._check = check

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if self._check is not None:
            self._check(func, args, kwargs or {})
        # Dynamo traces this too: its operators have no hash there, and within a mode it does not
        # follow a method that calls that of the class below.
        if func is Tensor.unflatten:
            func = torch.unflatten
        elif not isinstance(func, HigherOrderOperator) and func in self._functions:
            return self._replacement(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


def attention_in_steps() -> replacing:
    """Within it attention layers of torch in eval mode compute as they do in training.

    They have a fused way for tensors that, as far as they can see within a transform, do not
    require grad. It has neither derivatives nor, with a padding mask, a rule for ``vmap``. They do
    not take it where functions of torch are overridden, nor with a mask that hides other entries
    than the last.
    """
    return replacing(frozenset([torch._nested_tensor_from_mask_left_aligned]), _false)


def _false(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return False
