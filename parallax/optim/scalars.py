"""Tensors where torch's kernels read Python numbers, so that derivatives and vmap see them.

In eager code ``p.add_(g, alpha=lr)`` turns ``lr`` into a number: its gradient is lost, and a batch
of rates is refused. So the kernels are given parameters of a class that multiplies such arguments
in, and within ``Unread`` the ``item()`` of a tensor is the tensor itself. ``torch.compile`` makes
the same of these kernels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from parallax import _compat

__all__ = ["Multiplied", "Unread"]


class Multiplied(Tensor):
    """A parameter whose methods in place take tensors for ``alpha`` and ``value``."""

    __torch_function__ = _compat.disabled_torch_function  # results are plain tensors

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """As ``Tensor.add_``."""
        if isinstance(alpha, Tensor):
            return Tensor.add_(self, other * alpha)
        return Tensor.add_(self, other, alpha=alpha)

    def addcdiv_(self, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
        """As ``Tensor.addcdiv_``."""
        if isinstance(value, Tensor):
            return Tensor.add_(self, value * tensor1 / tensor2)
        return Tensor.addcdiv_(self, tensor1, tensor2, value=value)


class Unread(TorchFunctionMode):
    """Within it, ``item()`` leaves a tensor a tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Calls ``func``, or nothing."""
        return args[0] if func is Tensor.item else func(*args, **(kwargs or {}))
