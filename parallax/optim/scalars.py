"""Torch's kernels with tensors instead of Python numbers, for derivatives and vmap.

A learning rate may be a tensor that is differentiated, or one rate for each member of an ensemble.
Torch's kernels step one tensor after the other in place. Three things in them fail for a tensor:

- ``param.add_(grad, alpha=lr)`` converts ``lr`` to a number, or raises if it requires grad. Forward
  mode loses its derivative without a word. Kernels are given leaves of the class ``Multiplied``,
  which multiplies by ``lr`` instead.
- ``step.item()`` returns a number. Within ``Unread`` it returns the tensor itself.
- vmap has no rule for ``addcmul_``, ``lerp_`` and others. Within ``Unread`` they are computed by
  operators that have one.
- ``if momentum != 0`` leaves out what has a derivative at zero, and has no answer where members of
  ``vmap`` differ. Such a number is given as ``Counting``, which is not zero.

``torch.compile`` does the first two itself, by an operator without a derivative in a trace (torch
2.13, 2.14). Under ``vmap`` or in a derivative in a trace there is ``Composed``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from parallax._compat import functorch, in_trace, kernels

__all__ = ["Composed", "Unread", "are_shared", "as_plain", "counting", "multiplied", "spread"]


class Multiplied(Tensor):
    """A leaf, gradient or moment whose methods take tensors for ``alpha`` and ``value``."""

    __torch_function__ = kernels.disabled_torch_function  # results are plain tensors

    def __neg__(self) -> Tensor:
        return Tensor.neg(self).as_subclass(Multiplied)

    def add(self, other: Any, *, alpha: Any = 1) -> Tensor:  # type: ignore[override]  # no out=
        """As ``Tensor.add``."""
        if isinstance(alpha, Tensor):  # the other one may be written later, and is kept
            return Tensor.add(self, alpha * other.clone()).as_subclass(Multiplied)
        return Tensor.add(self, other, alpha=alpha).as_subclass(Multiplied)

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """As ``Tensor.add_``."""
        if isinstance(alpha, Tensor):
            return Tensor.add_(self, other * alpha)
        return Tensor.add_(self, other, alpha=alpha)

    def addcmul_(self, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
        """As ``Tensor.addcmul_``."""
        if isinstance(value, Tensor):
            return Tensor.add_(self, value * tensor1 * tensor2)
        return Tensor.addcmul_(self, tensor1, tensor2, value=value)

    def addcdiv_(self, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
        """As ``Tensor.addcdiv_``."""
        if isinstance(value, Tensor):
            return Tensor.add_(self, value * tensor1 / tensor2)
        return Tensor.addcdiv_(self, tensor1, tensor2, value=value)


def multiplied(tensors: list[Any]) -> list[Any]:
    """The same tensors, as ``Multiplied``."""
    return [None if t is None else t.as_subclass(Multiplied) for t in tensors]


def as_plain(tensors: list[Any]) -> list[Any]:
    """The same tensors, as ``Tensor``."""
    return [None if t is None else t.as_subclass(Tensor) for t in tensors]


class Counting(Tensor):
    """A hyper-parameter that kernels do not take for zero.

    What they leave out for a zero has a derivative, and members of ``vmap`` may differ.
    """

    __torch_function__ = kernels.disabled_torch_function  # results are plain tensors

    def __ne__(self, other: object) -> Any:
        return True

    def __gt__(self, other: Any) -> Any:
        return True

    __hash__ = Tensor.__hash__


def counting(value: Any) -> Any:
    """A hyper-parameter for a kernel, which compares it with zero."""
    return value.as_subclass(Counting) if isinstance(value, Tensor) else value


class Unread(TorchFunctionMode):
    """Within it, ``item()`` returns the tensor itself, and vmap has a rule for every operator."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls ``func``, or operators that compute the same, or returns the tensor."""
        if func is Tensor.item:
            return args[0]
        composed = _COMPOSED.get(func) if functorch.vmap_active() else None
        return (composed or func)(*args, **(kwargs or {}))


class Composed(TorchFunctionMode):
    """Within it, transforms have a rule for each operator in place of the kernels, in a trace."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls ``func``, or operators that compute the same."""
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


def are_shared(written: list[Any], read: list[Any]) -> bool:
    """Whether, in a trace, members of a ``vmap`` share what is written, and not what is read."""
    in_trace.at_trace()(_look)
    del written, read
    return bool(in_trace.replied())


def _look(context: Any) -> None:
    """Answers the question of ``are_shared``, from its locals."""
    written, read = [
        [functorch.mapped_levels(t) for t in in_trace.items(context, name) if isinstance(t, Tensor)]
        for name in ("written", "read")
    ]
    all_levels = frozenset().union(*written, *read)
    in_trace.reply(context, any([levels != all_levels for levels in written]))


def spread(tensors: list[Any], over: list[Any]) -> list[Any]:
    """Copies with every dimension that a running ``vmap`` maps any of the tensors ``over``.

    A tensor written in place needs the mapped dimensions of every tensor that is written into it,
    and so does its derivative in forward mode.
    """
    ones: dict[torch.device, Any] = {t.device: 1 for t in tensors if t is not None}
    some = [t.detach().reshape(-1)[0] for t in over if isinstance(t, Tensor) and t.numel()]
    for device in ones:
        zeros = [torch.zeros_like(t, dtype=torch.float32, device=device) for t in some]
        ones[device] = sum(zeros, torch.ones((), device=device))
    return [None if t is None else t * ones[t.device].to(t.dtype) for t in tensors]


# -- operators in place, made of those that transforms have rules for -----------------------------


def _add_(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    if isinstance(alpha, Tensor):
        return self.add_(alpha * other)
    return self.add_(other, alpha=alpha)


def _addcmul_(self: Tensor, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    return self.add_(value * tensor1 * tensor2)


def _addcdiv_(self: Tensor, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    return self.add_(value * tensor1 / tensor2)


def _lerp_(self: Tensor, end: Any, weight: Any) -> Tensor:
    return self.add_(weight * (end - self))


def _clamp_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return self.copy_(torch.clamp(self.clone(), *args, **kwargs))  # which is saved for backward


def _setitem(self: Tensor, mask: Any, value: Any) -> None:
    self.copy_(torch.where(mask, value, self))  # kernels set by masks alone


def _maximum(self: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    found = torch.maximum(self, other)
    return found if out is None else out.copy_(found)


_COMPOSED: dict[Any, Any] = {
    Tensor.add_: _add_,
    Tensor.addcmul_: _addcmul_,
    Tensor.addcdiv_: _addcdiv_,
    Tensor.lerp_: _lerp_,
    Tensor.clamp_: _clamp_,
    Tensor.__setitem__: _setitem,
    torch.maximum: _maximum,
}
