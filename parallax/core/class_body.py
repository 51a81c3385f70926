"""From a class statement to its fields: collects them, checks names, resolves annotations."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from typing import Any

from parallax.core.fields import MISSING, Field
from parallax.core.kinds import evaluate, is_class_variable, kind_of
from parallax.core.layout import Layout

__all__ = ["Scope", "collect_fields", "collect_overrides", "fields_of", "resolve"]


class Scope:
    """The names that are visible where a class was written, to resolve annotations in text form.

    A class inside a function may use the function's variables, also those set after the class. So
    the function's frame is kept until the annotations of the class are resolved.
    """

    def __init__(self, module: str) -> None:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_globals.get("__name__") != module:
            frame = frame.f_back
        self.frame = frame
        self.globals = frame.f_globals if frame is not None else {}

    def names(self) -> dict[str, Any]:
        """The visible names; inner ones take precedence over outer ones."""
        scopes = []
        frame = self.frame
        while frame is not None and frame.f_locals is not frame.f_globals:
            scopes.append(frame.f_locals)
            # The body of an outer class is not the end: a function may stand around it. Nor is the
            # frame between a class and its type parameters.
            inner = frame.f_code.co_name.startswith("<generic parameters of ")
            frame = frame.f_back if inner or "__qualname__" in frame.f_locals else None
        found = dict(self.globals)
        for scope in reversed(scopes):
            found |= scope
        return found

    def forget(self) -> None:
        """Releases the frame."""
        self.frame = None


def collect_fields(
    name: str,
    bases: tuple[type, ...],
    namespace: dict[str, Any],
    reserved: frozenset[str],
    kw_only: bool,
) -> dict[str, Field]:
    """The fields that a class body annotates; their defaults are removed from the namespace."""
    own: dict[str, Field] = {}
    for key, annotation in _annotations_in(name, namespace).items():
        if annotation is dataclasses.KW_ONLY or str(annotation).endswith("KW_ONLY"):
            kw_only = True
            continue
        if is_class_variable(annotation):
            continue
        _check_name(name, key, reserved)
        default = namespace.pop(key, MISSING)
        declared = default if isinstance(default, Field) else Field(default=default)
        declared.name = key
        declared.annotation = annotation
        if declared.kw_only is None:
            declared.kw_only = kw_only
        own[key] = declared
        if any(hasattr(base, key) for base in bases):
            # A method or property of a base would be found where the field is not set (yet).
            namespace[key] = MISSING
    return own


def _annotations_in(name: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """The annotations of a class body: objects, or text where a name has no value yet.

    From Python 3.14 on a body without ``from __future__ import annotations`` leaves a function
    that evaluates them; see https://peps.python.org/pep-0749/.
    """
    found: dict[str, Any] = namespace.get("__annotations__", {})
    if sys.version_info >= (3, 14) and "__annotations__" not in namespace:
        import annotationlib as lib

        if annotate := lib.get_annotate_from_class_namespace(namespace):
            found = dict(lib.call_annotate_function(annotate, lib.Format.FORWARDREF))
            texts = lib.call_annotate_function(annotate, lib.Format.STRING)
            # Its own name means this class, which is not made yet, whatever it meant before.
            itself = re.compile(rf"\b{re.escape(name)}\b")
            for key, text in texts.items():
                if isinstance(found[key], lib.ForwardRef) or itself.search(text):
                    found[key] = text
    return found


def collect_overrides(cls: type, own: dict[str, Field]) -> None:
    """Adds the inherited fields to which a class body gives another default without annotation."""
    inherited = fields_of(cls.__mro__[1:])
    for key in [key for key in vars(cls) if key in inherited and key not in own]:
        default = vars(cls)[key]
        if not _takes_place(cls, key, default):
            own[key] = _redefault(inherited[key], default)
            type.__delattr__(cls, key)


def _takes_place(cls: type, key: str, value: Any) -> bool:
    """Whether a value in a class body is a method or descriptor rather than a default."""
    if isinstance(value, types.FunctionType):
        return value.__qualname__ == f"{cls.__qualname__}.{key}"
    return hasattr(value, "__get__") and not isinstance(value, type)


def _check_name(cls: str, key: str, reserved: frozenset[str]) -> None:
    if key in reserved:
        raise TypeError(
            f"{cls}.{key}: '{key}' is a verb or attribute of every Module and cannot be a field. "
            f"Choose another name, such as '{key}_'."
        )
    if key.startswith("__"):
        raise TypeError(f"{cls}.{key}: a field's name must not start with two underscores")


def _redefault(inherited: Field, default: Any) -> Field:
    if not isinstance(default, Field):
        return dataclasses.replace(inherited, default=default, default_factory=MISSING)
    if default.kw_only is None:
        default.kw_only = inherited.kw_only
    default.name = inherited.name
    default.annotation = inherited.annotation
    default.owner = inherited.owner
    return default


def fields_of(mro: tuple[type, ...]) -> dict[str, Field]:
    """All fields along an MRO, base classes first; an override keeps its place."""
    fields: dict[str, Field] = {}
    for cls in reversed(mro):
        own = cls.__dict__.get("__own_fields__", {})
        for key in list(fields):
            if key not in own and key in cls.__dict__ and key != "__annotations__":
                del fields[key]
        fields.update(own)
    return fields


def resolve(cls: type) -> Layout:
    """The layout of a class, every annotation evaluated; a ``NameError`` if one cannot be yet."""
    fields = fields_of(cls.__mro__)
    for key, declared in fields.items():
        if declared.kind is not None:
            continue
        where = f"{declared.owner.__name__}.{key}"
        scope: Scope = declared.owner.__scope__  # type: ignore[attr-defined]  # set by the metaclass
        try:
            names = scope.names()
            declared.hint = evaluate(declared.annotation, declared.owner, names, where)
            declared.kind = kind_of(declared.hint, declared.owner, names, where)
        except NameError as error:
            raise NameError(
                f"{where} is annotated {declared.annotation!r}, and {error}. Define the name "
                f"before the first {cls.__name__} is made, or import it at run time."
            ) from None
    cls.__scope__.forget()  # type: ignore[attr-defined]  # as above
    return Layout(cls, fields)
