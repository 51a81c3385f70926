"""``nans``: where do numbers begin that are not finite?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from parallax._compat import dynamo, functorch, shards
from parallax._errors.arguments import check_function
from parallax.core import notes
from parallax.debug.calls import arguments, leaves_of, name_of, tensors_in
from parallax.debug.observing import observed
from parallax.debug.operator import checking
from parallax.effects.running import refuse_deferred

__all__ = ["NonFiniteError", "nans"]

P = ParamSpec("P")
R = TypeVar("R")


class NonFiniteError(ArithmeticError):
    """A number is infinite or NaN.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> try:
        ...     debug.nans(torch.log)(torch.zeros(2))
        ... except debug.NonFiniteError as error:
        ...     print(error)
        log() holds 2 of 2 numbers that are not finite
    """


def nans(fn: Callable[P, R]) -> Callable[P, R]:
    """Finds the first module whose output is not finite.

    It works within transforms. To look into a compiled function compile what this returns:
    ``parallax.compile(debug.nans(step))``. There, modules are looked at that are among the
    arguments and are not lifted, and each output is an operator that waits for its numbers.

    Args:
        fn: a function whose arguments hold modules.

    Returns:
        A function that does the same, and raises when a number is not finite.

    Raises:
        NonFiniteError: as soon as a module returns infinities or nans, naming its path; if an
            argument holds some, before the call; if only the result does, after it.
        TypeError: if ``fn`` returns a coroutine or a generator, which would run after the check.

    Example:
        >>> import torch
        >>> from parallax import Module, debug
        >>> class Log(Module):
        ...     def forward(self, x):
        ...         return x.log()
        >>> class Net(Module):
        ...     log: Log
        ...     def forward(self, x):
        ...         return self.log(x) + 1
        >>> debug.nans(Net.forward)(Net(Log()), torch.zeros(1))
        Traceback (most recent call last):
        parallax.debug.nans.NonFiniteError: log (Log) returned 1 of 1 numbers that are not...
    """
    check_function("debug.nans", fn, "debug.nans(loss)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for path, leaf in tensors_in(arguments(fn, args, kwargs)):
            _refuse_non_finite(leaf, f"{path}, an argument,")
        result: R = observed(fn, args, kwargs, _Outputs(), "debug.nans")
        if not dynamo.is_compiling():
            refuse_deferred(result, "debug.nans")
        for path, leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{name_of(fn)}(){'.' if path else ''}{path}")
        return result

    return checked


class _Outputs:
    """Looks at what modules return."""

    def begins(self, module: Any, forward: Any, given: Any) -> None:
        """Nothing: arguments are the outputs of others."""

    def returns(self, module: Any, forward: Any, given: Any, out: Any) -> None:
        """The numbers of an output are finite."""
        path = notes.note_of(module).path or type(module).__name__
        for _, leaf in leaves_of(out):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{path} ({type(module).__name__})", "returned")


def _refuse_non_finite(tensor: Tensor, who: str, verb: str = "holds") -> None:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    if dynamo.is_compiling():
        _operator(tensor.detach(), who, verb)
    else:
        value = torch.func.debug_unwrap(tensor, recurse=True)
        with functorch.outside_transforms(), torch.no_grad():
            _finite(value, who, verb)


def _finite(value: Tensor, who: str, verb: str) -> None:
    """Raises unless all numbers, of all members, are finite."""
    if value.device.type == "meta":
        return
    bad = int(shards.whole((~torch.isfinite(value)).sum()))
    if bad:
        raise NonFiniteError(f"{who} {verb} {bad} of {value.numel()} numbers that are not finite")


_operator = checking("(Tensor value, str who, str verb) -> ()", _finite, lambda dims, *args: args)
