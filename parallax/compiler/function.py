"""``compile``: functions of trees as one graph each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from parallax._errors.arguments import check_function
from parallax.compiler import dynamo
from parallax.compiler.donation import Donate, donation_of
from parallax.compiler.lowering import Compiled, Compiler, Method
from parallax.compiler.recompiling import CompiledFunction
from parallax.core.nodes import is_module

__all__ = ["compile"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")


# A method is a function as well; the checkers take the first overload that fits.
@overload
def compile(  # noqa: A001  # pyright: ignore[reportOverlappingOverload]
    fn: Method[S, P, R], *, donate: Donate = (), **options: Any
) -> Callable[Concatenate[S, P], R]: ...
@overload
def compile(  # noqa: A001  # torch's name, read as parallax.compile
    fn: Callable[P, R], *, donate: Donate = (), **options: Any
) -> Compiled[P, R]: ...
@overload
def compile(  # noqa: A001  # as above
    fn: None = None, *, donate: Donate = (), **options: Any
) -> Compiler: ...
def compile(fn: Any = None, *, donate: Any = (), **options: Any) -> Any:  # noqa: A001  # as above
    """``torch.compile`` for functions of trees: one graph; trees are taken apart outside of it.

    Arguments are taken apart outside the compiled code and results put together outside, so the
    code sees flat tensors only, and one check in C++ replaces dynamo's guards on them. What the
    function reads besides its arguments (closures, globals, grad mode, autocast, ...) is guarded
    by dynamo as always. Gradients flow through a call as through one of ``torch.compile``.

    A graph is made at the first call, and again when an argument's structure changes (a constant of
    a module, its mode, whether it holds an rng, the keys of a dict) or a leaf's dtype, device,
    layout, strides or ``requires_grad``. In a training loop return the plain ``model``: returning
    ``model.train(key)`` adds an rng, and a second graph. A tensor outside of modules that changes
    its size gets a graph in which that size is symbolic; a module whose leaves change size is
    another model, with a graph of its own. Python numbers follow torch's rule: a constant at first,
    symbolic once they have changed.

    A function that writes into its arguments is compiled as torch would, with a graph for each way
    in which they overlap in memory. Where a tensor is an argument and a global at once, later calls
    may pass another one; torch itself would take the two for the same from then on.

    On the CPU, inductor gets two options that change no result. With ``cpp_wrapper`` the code
    around its kernels is C++. That is faster to run and, for whole steps, to compile, though slower
    to compile for a few lines; ``options={"cpp_wrapper": False}`` asks for Python. And its code
    does not check the sizes of inputs again, unless ``size_asserts`` is among your options. After
    an error in a graph ``fn`` itself is called, so that its own error is raised.

    At a terminal a line tells what is compiled, and for how long so far, if it takes seconds.

    Where a ``torch.func`` transform, a dispatch mode or another trace is active, ``fn`` itself is
    called, and becomes part of that.

    Args:
        fn: the function, or a module. Without it, a decorator is returned.
        donate: names of arguments, or their places from 0 on, that are given away at each call: the
            memory of their floating-point tensors becomes that of results of the same sizes, so a
            step needs no more memory than one in place. Using them afterwards, bare tensors
            included, raises ``optim.DonatedError``. Memory that another tensor uses as well is
            copied first; a tensor that another argument holds, too, is refused. Needs one graph.
        **options: those of ``torch.compile``. ``fullgraph`` is true by default.

    Returns:
        A function with the signature of ``fn``. Its ``lower(*args)`` compiles for such arguments
        without running anything, and ``lower(*args).save(path)`` writes a file for
        ``load_compiled``.

    Raises:
        TypeError: if ``fn`` cannot be called, ``torch.compile`` has no such option, or ``donate``
            holds anything but names and places.
        RuntimeError: from a call that would make more than ``recompile_limit`` graphs (by default
            torch's, 8) for arguments of the same classes; it names what changes. Without
            ``fullgraph`` it is a warning, and ``fn`` itself is called.
        UninitializedError: from a call with a module whose leaves have no values.
        ValueError: if there is no argument to donate, or from a call where it cannot be donated:
            under a transform, in another compiled function, with a tensor that requires grad or
            that is given twice.

    Example:
        >>> import torch, parallax
        >>> from parallax import Module, Parameter
        >>> class Scale(Module):
        ...     by: Parameter
        ...     def forward(self, x):
        ...         return self.by * x
        >>> @parallax.compile(backend="eager")
        ... def double(scale, x):
        ...     return scale.update(lambda leaf: 2 * leaf), scale(x)
        >>> scale, y = double(Scale(torch.ones(2)), torch.ones(2))
        >>> scale.by
        tensor([2., 2.])
    """
    if fn is None:
        return functools.partial(compile, donate=donate, **options)
    check_function("compile", fn, "parallax.compile(step), where step is a function")
    settings = dynamo.compile_settings(options)
    if isinstance(fn, MethodType) and is_module(fn.__self__):
        given = donation_of(fn.__func__, donate, 1)
        return _bound(CompiledFunction(fn.__func__, settings, given).wrapper(), fn.__self__)
    if is_module(fn):
        given = donation_of(type(fn).__call__, donate, 1)
        return _bound(CompiledFunction(_call, settings, given).wrapper(), fn)
    given = donation_of(fn, donate)
    if settings.get("disable"):
        return fn
    return CompiledFunction(fn, settings, given).wrapper()


def _bound(compiled: Any, module: Any) -> Any:
    """A compiled function with its first argument."""
    bound: Any = functools.partial(compiled, module)
    bound.lower = functools.partial(compiled.lower, module)
    return bound


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)
