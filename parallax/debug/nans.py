"""``nans``: where do numbers begin that are not finite?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import optree
import torch
from torch import Tensor

from parallax._compat import functorch
from parallax.core import notes
from parallax.core.arguments import check_function
from parallax.core.nodes import is_module
from parallax.core.registry import NAMESPACE, flatten_module, unflatten_module
from parallax.debug.calls import arguments, leaves_of, name_of, tensors_in
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

    The function is run under ``sys.setprofile``, which sees every ``forward`` return: no module is
    touched, and it works within transforms. It does not look into compiled functions.

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
        inner: Any = _addressed(args)
        options: Any = _addressed(kwargs)
        run: Any = fn
        owner = getattr(run, "__self__", None)
        if is_module(run):
            run = _addressed(run)
        elif is_module(owner):
            run = MethodType(run.__func__, _addressed(owner))
        with _Watch():
            result: R = run(*inner, **options)
        refuse_deferred(result, "debug.nans")
        for path, leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{name_of(fn)}(){'.' if path else ''}{path}")
        return result

    return checked


def _addressed(value: Any) -> Any:
    """A pytree whose modules know their paths; those that do already keep them, and their rng."""
    items, spec = optree.tree_flatten(
        value, is_leaf=is_module, none_is_leaf=True, namespace=NAMESPACE
    )
    for index, item in enumerate(items):
        if is_module(item) and notes.note_of(item).path is None:
            leaves, structure = flatten_module(item)
            items[index] = unflatten_module(notes.addressed(structure), leaves, item._rng)
    return optree.tree_unflatten(spec, items)


class _Watch:
    """Looks at what every ``forward`` of a module returns, on this thread."""

    def __enter__(self) -> None:
        self.before = sys.getprofile()
        sys.setprofile(_on_return)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self.before)


def _on_return(frame: Any, event: str, result: Any) -> None:
    code = frame.f_code
    if event != "return" or code.co_name != "forward" or code.co_argcount == 0:
        return
    module = frame.f_locals.get(code.co_varnames[0])
    if is_module(module) and result is not None:
        path = notes.note_of(module).path or type(module).__name__
        for _, leaf in leaves_of(result):
            if isinstance(leaf, Tensor):
                _refuse_non_finite(leaf, f"{path} ({type(module).__name__})", returned=True)


def _refuse_non_finite(tensor: Tensor, who: str, *, returned: bool = False) -> None:
    value = torch.func.debug_unwrap(tensor, recurse=True)
    if not (value.is_floating_point() or value.is_complex()) or value.device.type == "meta":
        return
    with functorch.outside_transforms(), torch.no_grad():
        bad = int((~torch.isfinite(value)).sum())
    if bad:
        verb = "returned" if returned else "holds"
        raise NonFiniteError(f"{who} {verb} {bad} of {value.numel()} numbers that are not finite")
