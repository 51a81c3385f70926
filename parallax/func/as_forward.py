"""Functions whose forward derivative is computed by reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from parallax._compat import dynamo, overrides
from parallax.func.formulas import OTHERS
from parallax.func.jets import NoRuleError
from parallax.func.other import AsItIsError

__all__ = ["CutError", "as_forward"]


class CutError(RuntimeError):
    """A function computes something without gradients, which forward mode alone passes."""


@contextmanager
def as_forward() -> Iterator[None]:
    """While a function runs whose forward derivative is taken by reverse mode twice.

    What would be a second derivative is a third one then, and those of torch's norms are wrong:
    they, and others whose derivatives are, are computed by what is right. Dynamo does not trace it.

    Raises:
        CutError: at the end, if the function disabled gradients.
    """
    if dynamo.is_compiling():
        yield
        return
    calls = _Calls()
    calls.mode = overrides.calls_through(calls)
    with calls.mode:
        yield
    if calls.cut:
        raise CutError("a part of the function was computed without gradients")


class _Calls:
    """What happens in place of torch's functions.

    Attributes:
        cut: whether gradients were disabled.
        mode: within which it happens.
    """

    __slots__ = ("cut", "mode")

    mode: overrides.calls_through

    def __init__(self) -> None:
        self.cut = False

    def __call__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        if function is overrides.set_grad_enabled and args == (False,):
            self.cut = self.cut or torch.is_grad_enabled()
        other = OTHERS.get(function)
        if other is not None:
            try:
                if other.within:
                    with self.mode:
                        return other(function, args, kwargs)
                return other(function, args, kwargs)
            except (AsItIsError, NoRuleError):
                pass
        return function(*args, **kwargs)
