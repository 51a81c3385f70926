"""Functions of torch whose derivatives in forward mode have wrong derivatives.

A ``jvp`` of a ``jvp`` and the gradient of a ``jvp`` through them come out wrong, without an error
(by 20 % and more of finite differences); of some already the first. Where a forward
derivative may be differentiated again, functions of the same value are computed in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, modes, overrides
from parallax.func.formulas import OTHERS
from parallax.func.forward_numbers import refuse_numbers
from parallax.func.forward_refusals import REFUSED, Refused
from parallax.func.jets import NoRuleError
from parallax.func.other import AsItIsError, Other

__all__ = ["differentiable_again"]

Function = TypeVar("Function", bound=Callable[..., Any])


def differentiable_again(function: Function) -> Function:
    """The function, whose derivatives in forward mode have right derivatives where torch's have.

    It is made outside of the forward derivative, and called within.
    """
    traced = dynamo.is_compiling()  # then the graph may be differentiated
    again = traced or functorch.differentiating() or modes.forward_level_active()
    calls = _Calls(again)
    replacing = overrides.replacing(_REPLACED, calls, None if traced else refuse_numbers)
    calls.mode = replacing

    def replaced(*values: Any) -> Any:
        with replacing:
            return function(*values)

    return cast(Function, replaced)


_REPLACED = OTHERS.keys() | REFUSED.keys()


class _Calls:
    """What happens in place of torch's functions.

    Attributes:
        again: whether something around differentiates; if not, something within may, or a tensor
            that requires grad.
        mode: within which it happens.
    """

    __slots__ = ("again", "mode")

    mode: overrides.replacing

    def __init__(self, again: bool) -> None:
        self.again = again

    def __call__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        refused = REFUSED.get(function)
        if refused is not None and _is_wrong(refused, _tensors_of(args, kwargs)):
            refused.raise_for(args, kwargs)
        other = OTHERS.get(function)
        if other is not None and self._concerns(other, args, kwargs):
            try:
                if other.within:
                    with self.mode:
                        return other(function, args, kwargs)
                return other(function, args, kwargs)
            except (AsItIsError, NoRuleError):
                pass
        return function(*args, **kwargs)

    def _concerns(self, other: Other, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        tensors = _tensors_of(args, kwargs)
        if not all([overrides.is_ordinary(type(x)) for x in tensors]):
            return False
        if other.forward == 1 or self.again or sum(functorch.derivatives_running()) > 1:
            return True
        return other.drops(args, kwargs) or _recorded(tensors)


def _tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    return [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor)]


def _recorded(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any([functorch.innermost(x).requires_grad for x in tensors])


def _is_wrong(refused: Refused, tensors: Sequence[Tensor]) -> bool:
    """Whether torch's forward derivative is; from the second on not asked while dynamo traces."""
    if refused.order == 1 or dynamo.is_compiling():
        return refused.order == 1
    reverse, forward = functorch.derivatives_running()
    recorded = _recorded(tensors)
    if refused.order == 2 and (reverse > 0 or recorded):
        return True
    return reverse + forward + recorded > 2
