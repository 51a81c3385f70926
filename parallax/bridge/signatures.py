"""Lowered modules have the ``forward`` of the class they stand for: its arguments by name.

``torch.export`` reads them for ``dynamic_shapes``, ``torch.fx`` from the code itself, trainers to
see which columns a model takes. So there is a class for each, with a ``forward`` that is written
for it.
"""

from __future__ import annotations

import copyreg
import inspect
import weakref
from inspect import Parameter, Signature
from typing import Any

from torch import nn

from parallax.bridge.runs import Run
from parallax.core.code import function_of

__all__ = ["LoweredMeta", "class_with_forward_of"]


class LoweredMeta(type):
    """The metaclass of lowered modules, whose classes pickle by what they stand for."""

    stands_for: tuple[Any, weakref.ref[type]] | None = None
    made_for: tuple[Any, Any] | None = None


def _reduce(cls: Any) -> Any:
    if cls.stands_for is not None:
        base, of = cls.stands_for
        return class_with_forward_of, (base, of())
    if cls.made_for is not None:
        make, given = cls.made_for
        return make, (given,)
    return cls.__qualname__


copyreg.pickle(LoweredMeta, _reduce)

_made: weakref.WeakKeyDictionary[type, dict[Any, tuple[Any, Any]]] = weakref.WeakKeyDictionary()


def class_with_forward_of(base: Any, cls: Any) -> Any:
    """A subclass of ``base`` whose ``forward`` takes the arguments of that of ``cls``.

    Args:
        base: the class of lowered modules.
        cls: the class of a Parallax module; of others, ``base`` itself is returned.
    """
    forward = getattr(cls, "forward", None)
    if not inspect.isfunction(forward):
        return base
    made_of_it = _made.setdefault(cls, {})
    known = made_of_it.get(base)
    if known is None or known[0]() is not forward:
        body = _written(base, forward)
        space = {"__module__": base.__module__, "__doc__": base.__doc__, "forward": body,
                 "stands_for": (base, weakref.ref(cls))}  # fmt: skip
        made: Any = LoweredMeta(base.__name__, (base,), space)
        known = made_of_it[base] = (weakref.ref(forward), made)
    return known[1]


def _written(base: type[nn.Module], forward: Any) -> Any:
    """A function with the signature of ``forward`` that does what that of ``base`` does."""
    parameters = [*inspect.signature(forward).parameters.values()]
    if not parameters or parameters[0].kind in (Parameter.VAR_POSITIONAL, Parameter.KEYWORD_ONLY):
        return base.forward
    scope: dict[str, Any] = {"_Run": Run}
    declared: list[Parameter] = []
    given = ["_tree"]
    for index, parameter in enumerate(parameters):
        default = parameter.default
        if default is not Parameter.empty:
            scope[f"_default_{index}"] = default
            default = _Name(f"_default_{index}")
        declared.append(parameter.replace(annotation=Parameter.empty, default=default))
        given += [_passed(parameter)] if index else []
    body = [
        f"with _Run({declared[0].name}) as (_call, _tree):",
        f"    return _call({', '.join(given)})",
    ]
    made = function_of(f"forward{Signature(declared)}", body, scope)
    made.__annotations__ = dict(forward.__annotations__)
    made.__doc__ = forward.__doc__
    made.__module__ = forward.__module__
    made.__qualname__ = f"{base.__qualname__}.forward"
    return made


class _Name:
    """A default that is written as a name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def _passed(parameter: Parameter) -> str:
    match parameter.kind:
        case Parameter.VAR_POSITIONAL:
            return f"*{parameter.name}"
        case Parameter.VAR_KEYWORD:
            return f"**{parameter.name}"
        case Parameter.KEYWORD_ONLY:
            return f"{parameter.name}={parameter.name}"
        case _:
            return parameter.name
