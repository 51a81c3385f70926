"""A finished module cannot be changed: what raises ``FrozenInstanceError``, and what it says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any, NoReturn

from parallax.core.error_paths import held_as, path_to
from parallax.core.field_values import annotation_of
from parallax.core.fields import Buffer

__all__ = ["delete_attribute", "refuse_item", "setter_of", "undeclared"]


def setter_of(names: frozenset[str]) -> Callable[[Any, str, Any], None]:
    """The ``__setattr__`` of one class; a closure over the names makes it a fifth faster."""

    def __setattr__(self: Any, name: str, value: Any) -> None:
        # A module is under construction until it has a structure.
        if name in names and self._spec is None:
            object.__setattr__(self, name, value)
        else:
            _set_other(self, name, value)

    return __setattr__


def _set_other(module: Any, name: str, value: Any) -> None:
    """Sets an attribute in the unusual cases: a user's ``__setattr__``, a property, an error."""
    cls = type(module)
    if module._spec is not None:
        raise FrozenInstanceError(_immutable("set", module, name))
    if name not in cls.__layout__.fields and not hasattr(getattr(cls, name, None), "__set__"):
        raise AttributeError(undeclared(cls, name, value))
    object.__setattr__(module, name, value)


def delete_attribute(module: Any, name: str) -> None:
    """The ``__delattr__`` of modules."""
    if module._spec is not None:
        raise FrozenInstanceError(_immutable("delete", module, name))
    object.__delattr__(module, name)


def refuse_item(module: Any, key: Any, *_: Any) -> NoReturn:
    """Raises for ``module[key] = value`` and ``del module[key]``."""
    try:
        place = path_to(module[key], module)
    except (LookupError, TypeError, AttributeError):  # there is no such item
        place = None
    name, path = held_as(module) or ("module", "")
    path = ".".join([part for part in (path, place or "") if part]) or "path"
    raise FrozenInstanceError(
        f"cannot change {type(module).__name__}[{key!r}]: modules are immutable. Make a changed "
        f"copy: {name} = tree.select({name}, {path!r}).set(...)"
    )


def _immutable(verb: str, module: Any, name: str) -> str:
    """The message for a change of a finished module, which names the model that holds it."""
    held = held_as(module)
    of_model = ""
    if held is not None:
        model, path = held
        in_init = verb == "set" and sys._getframe(3).f_code.co_name == "__init__"
        if in_init and model == "self":
            child = f"self.{path.partition('.')[0]}"
            of_model = f"; in __init__: {child} = ... of such a copy, before {child} is assigned"
        else:
            of_model = f"; in {model}: {model} = tree.select({model}, '{path}.{name}').set(...)"
    field = type(module).__layout__.fields.get(name)
    if field is not None and field.kind.leaf is Buffer:
        of_model += f"; in forward: self.emit({name}=...)"
    return (
        f"cannot {verb} {type(module).__name__}.{name}: modules are immutable. "
        f"Make a changed copy: module = module.replace({name}=...){of_model}"
    )


def undeclared(cls: Any, name: str, value: Any) -> str:
    """The message for an attribute that no annotation declares."""
    import difflib

    near = difflib.get_close_matches(name, cls.__layout__.fields, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{cls.__name__} declares no field {name!r}.{hint} Declare it in the class body: "
        f"'{name}: {annotation_of(value)}'"
    )
