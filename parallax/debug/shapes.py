"""``shapes``: do tensors have the shapes that annotations say?"""

# pyright: reportMissingImports=false
# (jaxtyping comes with an extra; nothing here is reached where it is absent)

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from operator import index
from types import FunctionType, GenericAlias
from typing import Any, NamedTuple, ParamSpec, TypeVar

from torch import Tensor

from parallax._compat.opaque import real
from parallax._errors.arguments import check_function
from parallax.core import notes
from parallax.core.kinds import array_of
from parallax.debug.observing import observed

__all__ = ["ShapeError", "shapes"]

P = ParamSpec("P")
R = TypeVar("R")


class ShapeError(ValueError):
    """A tensor has another shape or dtype than its annotation says; see ``debug.shapes``.

    Example:
        >>> from parallax import debug
        >>> issubclass(debug.ShapeError, ValueError)
        True
    """


def shapes(fn: Callable[P, R]) -> Callable[P, R]:
    """Checks the annotations of jaxtyping on the fields and the ``forward`` of every module called.

    A field is annotated ``weight: Float[Parameter, "out in"]``, an argument or a result
    ``x: Float[Tensor, "*batch in"]``. Within one call of a module a name stands for one size, in
    its fields, arguments and result. Unions and tuples, lists and dicts of such annotations are
    understood, others are left alone; defaults are checked as arguments are. Within ``vmap`` shapes
    are those of one sample. While code is compiled it is checked once for each graph, and each size
    has its own graph; there, modules are looked at that are among the arguments.

    Needs the package jaxtyping: ``pip install 'parallax-torch[jaxtyping]'``.

    Args:
        fn: a function whose arguments hold modules.

    Returns:
        A function that does the same, and raises where a shape or dtype does not fit.

    Raises:
        ImportError: if jaxtyping is not installed.
        NameError: if the text of an annotation of ``forward`` names what does not exist.
        ShapeError: when a module is called or returns; the message names the path, the argument or
            field, and what was found in the call before.

    Example:
        >>> import torch
        >>> from torch import Tensor
        >>> from parallax import Module, Parameter, debug
        >>> from jaxtyping import Float  # doctest: +SKIP
        >>> class Dense(Module):  # doctest: +SKIP
        ...     weight: Float[Parameter, "out in"]
        ...     def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        ...         return x @ self.weight.T
        >>> dense = Dense(torch.ones(3, 2))  # doctest: +SKIP
        >>> debug.shapes(lambda dense, x: dense(x))(dense, torch.ones(5, 4))  # doctest: +SKIP
        Traceback (most recent call last):
        parallax.debug.shapes.ShapeError: Dense: x is float32[5, 4], and Float[Tensor, '*batch...
    """
    check_function("debug.shapes", fn, "debug.shapes(loss)(model, x)")
    _jaxtyping()

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        result: R = observed(fn, args, kwargs, _Shapes(), "debug.shapes")
        return result

    return checked


def _jaxtyping() -> Any:
    try:
        import jaxtyping
    except ImportError as error:
        raise ImportError(
            "debug.shapes checks annotations of jaxtyping, which is not installed. Install it: "
            "pip install 'parallax-torch[jaxtyping]'"
        ) from error
    return jaxtyping


class _Shapes:
    """Looks at the shapes of what modules hold, are given and return."""

    def begins(self, module: Any, forward: FunctionType, given: Any) -> None:
        """What is given fits the fields."""
        _check(forward, *_described(module, given))

    def returns(self, module: Any, forward: FunctionType, given: Any, out: Any) -> None:
        """The result fits them."""
        _check(forward, *_described(module, given), _sizes(out))


def _described(module: Any, given: Any) -> tuple[Any, str, Any, Any, Any]:
    """A call of a module in constants: its class, path, and the sizes of all that is annotated."""
    args, kwargs = given
    cls: Any = type(module)
    held = [(name, _sizes(getattr(module, name))) for name in _fields(cls)]
    named = [(name, _sizes(value)) for name, value in kwargs.items()]
    path = notes.note_of(module).path or ""
    return cls, path, tuple(held), tuple([_sizes(value) for value in args]), tuple(named)


class Sized(NamedTuple):
    """The metadata of a tensor, which jaxtyping takes for one."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def _sizes(value: Any) -> Any:
    """A value with the sizes of tensors in their places, as a constant.

    Pairs of a word and more: of a tensor, of nothing, of items, of a dictionary, of another.
    """
    if isinstance(value, Tensor):
        shape = tuple([index(size) for size in value.shape])  # numbers, in a trace too
        return ("tensor", shape, str(value.dtype).removeprefix("torch."))
    if value is None:
        return ("none",)
    if isinstance(value, (tuple, list)):
        return ("items", *[_sizes(item) for item in value])
    if isinstance(value, dict):
        return ("dict", *[_sizes(item) for item in value.values()])
    return ("other", type(value).__name__)


# -- annotations ----------------------------------------------------------------------------


@real
@lru_cache(None)
def _fields(cls: Any) -> tuple[str, ...]:
    """The fields of a class whose annotation tells a shape."""
    fields = cls.__layout__.fields
    return tuple([name for name, declared in fields.items() if _tells(declared.hint)])


@lru_cache(None)
def _parameters(forward: FunctionType, cls: Any) -> dict[str, Any]:
    """The annotations of a ``forward`` that tell shapes, of its parameters and of ``return``."""
    found = {}
    for name, annotation in forward.__annotations__.items():
        hint = _evaluated(annotation, forward, cls)
        if _tells(hint):
            found[name] = hint
    return found


def _evaluated(annotation: Any, forward: FunctionType, cls: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        hint = eval(annotation, forward.__globals__, dict(vars(cls)))
        return _evaluated(hint, forward, cls)
    except NameError as error:
        if "'" not in annotation and '"' not in annotation:
            return None  # no dimensions are named in it
        raise NameError(
            f"debug.shapes: {cls.__name__}.forward is annotated {annotation!r}, and {error}. "
            f"Import the name at the top of the file, at run time"
        ) from None


def _tells(hint: Any) -> bool:
    """Whether an annotation tells a shape, somewhere inside."""
    return array_of(hint) is not None or any([_tells(part) for part in typing.get_args(hint)])


# -- the check ------------------------------------------------------------------------------


@real
def _check(
    forward: FunctionType, cls: Any, path: str, held: Any, args: Any, kwargs: Any, out: Any = None
) -> None:
    """Raises unless the sizes of one call fit its annotations.

    Args:
        forward: what is called.
        cls: the class of the module.
        path: where the module stands.
        held: pairs of a field and sizes.
        args: the sizes of each argument given by position.
        kwargs: pairs of a name and the sizes of an argument given by it.
        out: the sizes of the result, if there is one.
    """
    function: Any = inspect.unwrap(forward)  # the class of a watched module has a wrapper
    hints = _parameters(function, cls)
    fields = cls.__layout__.fields
    entries = [(name, sizes, fields[name].hint) for name, sizes in held]
    if hints:
        signature = inspect.signature(function)
        try:
            bound = signature.bind(None, *args, **dict(kwargs)).arguments
        except TypeError:  # forward refuses these arguments itself
            return
        for name, parameter in signature.parameters.items():
            default = parameter.default is not inspect.Parameter.empty
            if name in hints and (name in bound or default):
                value = bound[name] if name in bound else _sizes(parameter.default)
                entries.append((name, *_widened(parameter.kind, value, hints[name])))
        if out is not None and "return" in hints:
            entries.append(("the result", out, hints["return"]))
    with _jaxtyping().jaxtyped("context"):
        for k, (name, sizes, hint) in enumerate(entries):
            if not _fits(sizes, hint):
                raise ShapeError(_misfit(f"{path} ({cls.__name__})" if path else cls.__name__,
                                         name, sizes, hint, entries[:k]))  # fmt: skip


def _widened(kind: Any, value: Any, hint: Any) -> tuple[Any, Any]:
    """The value and annotation of a parameter that may stand for several arguments."""
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return ("items", *value), GenericAlias(tuple, (hint, ...))
    if kind is inspect.Parameter.VAR_KEYWORD:
        return ("dict", *value.values()), GenericAlias(dict, (str, hint))
    return value, hint


def _fits(sizes: Any, hint: Any) -> bool:
    """Whether sizes fit an annotation; binds the names of dimensions that are new."""
    if array_of(hint) is not None:
        sized: Any = hint.dtype[Sized, hint.dim_str]
        return sizes[0] == "tensor" and isinstance(Sized(*sizes[1:]), sized)
    if not _tells(hint):
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        others = [part for part in parts if not _tells(part)]
        return any([_fits(sizes, part) for part in parts if _tells(part)]) or (
            (type(None) in others and sizes[0] == "none") or (sizes[0] == "other" and bool(others))
        )
    if sizes[0] == "dict":
        return all([_fits(item, parts[-1]) for item in sizes[1:]])
    if sizes[0] != "items":
        return False
    if origin is tuple and parts[-1] is not Ellipsis:
        return len(parts) == len(sizes) - 1 and all(map(_fits, sizes[1:], parts))
    return all([_fits(item, parts[0]) for item in sizes[1:]])


def _misfit(where: str, name: str, sizes: Any, hint: Any, before: Sequence[Any]) -> str:
    found = [f"{known} {_spelled(value)} ({_named(text)})" for known, value, text in before]
    told = f". Before it in this call: {', '.join(found)}" if found else ""
    return f"{where}: {name} is {_spelled(sizes)}, and {_named(hint)} is its annotation{told}"


def _spelled(sizes: Any) -> str:
    kind, *rest = sizes
    if kind == "tensor":
        return str(Sized(*rest))
    if kind == "none":
        return "None"
    if kind == "other":
        return f"a {rest[0]}"
    return f"({', '.join(map(_spelled, rest))})"


def _named(hint: Any) -> str:
    return hint.__name__ if array_of(hint) is not None else str(hint).replace("jaxtyping.", "")
