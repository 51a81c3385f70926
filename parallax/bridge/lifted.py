"""``Lifted``: an ``nn.Module`` as an immutable tree."""

from __future__ import annotations

import copyreg
import inspect
import threading
import weakref
from collections.abc import Container, Iterator
from typing import Any, ClassVar

from torch import nn

from parallax._compat import dynamo
from parallax._errors.arguments import shown
from parallax._errors.habits import HABITS
from parallax.bridge import running, traced
from parallax.bridge.blueprint import Blueprint
from parallax.bridge.pointers import Ref, resolved
from parallax.bridge.skeleton import follow
from parallax.core import notes
from parallax.core.fields import Buffer, Parameter
from parallax.core.metaclass import ModuleMeta
from parallax.core.module import Module
from parallax.core.structure import Structure

__all__ = ["Lifted", "class_for", "lifted_type"]


class _LiftedMeta(ModuleMeta):
    """The metaclass of lifted modules, whose classes pickle by what they were made from."""


class Lifted(Module, metaclass=_LiftedMeta):
    """What ``bridge.lift`` returns: a mirror of an ``nn.Module``, made of leaves.

    Parameters, buffers and children are attributes under their names; other attributes, properties
    and methods are the original's. A method runs on a private copy of the original around these
    leaves: what it writes to ``self`` is not kept, except buffers, which it emits as effects.

    Example:
        >>> from torch import nn
        >>> from parallax import bridge
        >>> mlp = bridge.lift(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        >>> mlp[0].in_features
        2
    """

    _blueprint: Blueprint
    __tells__: ClassVar[bool] = True  # of watched calls, by hooks of the private copy

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's call, with its hooks."""
        if dynamo.is_compiling():
            return traced.call(self, args, kwargs)
        return running.call(self, None, args, kwargs)

    def extra_repr(self) -> str:
        """The ``extra_repr`` of the original."""
        try:
            return str(running.call(self, "extra_repr", (), {}))
        except (
            AttributeError,
            TypeError,
        ):  # of leaves that are no tensors, such as gradients' holes
            return ""

    @staticmethod
    def __unsaved__(constants: dict[str, Any]) -> Container[str]:
        blueprint: Blueprint = constants["_blueprint"]
        names: Container[str] = blueprint.attributes.get("_non_persistent_buffers_set", ())
        return names

    def __getitem__(self, key: Any) -> Any:
        layout = type(self).__layout__
        if isinstance(key, str):
            if key in layout.fields:
                return getattr(self, key)
            raise KeyError(f"{type(self).__name__} has no parameter, buffer or module {key!r}")
        names = [name for name in layout.children if name.isdecimal()]
        if isinstance(key, slice):
            return tuple(getattr(self, name) for name in names[key])
        return getattr(self, names[key])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_blueprint":
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return _member(self, self._blueprint, name)


class LiftedContainer(Lifted):
    """A lifted ``ModuleList``, ``Sequential``, ``ModuleDict``, ``ParameterList`` or the like."""

    def __len__(self) -> int:
        return len(type(self).__layout__.children)

    def __iter__(self) -> Iterator[Any]:
        names = type(self).__layout__.children
        if hasattr(self._blueprint.cls, "keys"):
            return iter(names)
        return iter([getattr(self, name) for name in names])

    def __contains__(self, item: Any) -> bool:
        if isinstance(item, str):
            return item in type(self).__layout__.children
        return any(item is value for value in self)

    def keys(self) -> tuple[str, ...]:
        """The names of what it holds."""
        return type(self).__layout__.children

    def values(self) -> tuple[Any, ...]:
        """What it holds."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """Pairs of name and value."""
        return tuple(zip(self.keys(), self.values(), strict=True))


def lifted_type(origin: type[nn.Module]) -> type:
    """The type of lifted modules of a class, for ``isinstance`` and ``tree.select``.

    Args:
        origin: a class of ``nn.Module``; subclasses of it count.

    Returns:
        The type.

    Raises:
        TypeError: if it is no class of ``nn.Module``.

    Example:
        >>> from torch import nn
        >>> from parallax import bridge, tree
        >>> mlp = bridge.lift(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)))
        >>> tree.select(mlp, bridge.lifted_type(nn.Linear)).paths
        ('0', '2')
    """
    given: Any = origin
    if not (isinstance(given, type) and issubclass(given, nn.Module)):
        raise TypeError(
            f"bridge.lifted_type(origin=): expected a class of nn.Module, got {shown(origin)}. "
            f"Write bridge.lifted_type(nn.Linear)"
        )
    return _Of(f"lifted {origin.__name__}", (), {"origin": origin})


class _Of(type):
    """The type of lifted modules of one ``nn.Module`` class."""

    origin: type[nn.Module]

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, Lifted) and issubclass(instance._blueprint.cls, cls.origin)

    def describes(cls, structure: Structure) -> bool:
        """Whether a module of a structure is an instance."""
        constants = structure.local.constants
        blueprint = constants[0] if constants else None
        return isinstance(blueprint, Blueprint) and issubclass(blueprint.cls, cls.origin)


# -- classes --------------------------------------------------------------------------------------

_Parts = tuple[str, bool, tuple[str, ...], tuple[str, ...], tuple[str, ...]]
_classes: dict[_Parts, type[Lifted]] = {}
_making = threading.Lock()
_TAKEN = frozenset({"_spec", "_rng", "_leaves", "_blueprint"})


def class_for(
    name: str,
    container: bool,
    parameters: tuple[str, ...],
    buffers: tuple[str, ...],
    children: tuple[str, ...],
) -> type[Lifted]:
    """The class of lifted modules with these fields; made once, for classes are never freed.

    Raises:
        ValueError: if a name is one that no field can have.
    """
    parts = (name, container, parameters, buffers, children)
    found = _classes.get(parts)
    if found is None:
        with _making:
            found = _classes.get(parts) or _classes.setdefault(parts, _make(parts))
    return found


def _make(parts: _Parts) -> type[Lifted]:
    name, container, parameters, buffers, children = parts
    hints: dict[str, Any] = dict.fromkeys(parameters, Parameter | None)
    hints |= dict.fromkeys(buffers, Buffer | None)
    hints |= dict.fromkeys(children, Module | None)
    for key in hints:
        if key in _TAKEN or key.startswith("__"):
            raise ValueError(
                f"cannot lift {name}: it has a parameter, buffer or module named {key!r}, which "
                f"is reserved. Rename it in the nn.Module"
            )
    namespace = {
        "__module__": __name__,
        "__qualname__": f"{name}({', '.join(hints)})",
        "__doc__": f"A lifted ``{name}``.",
        "__annotations__": hints,
        "__init__": _refuse_construction,
        "_parts": (name, container, parameters, buffers, children),
    }
    base = LiftedContainer if container else Lifted
    metaclass: Any = _LiftedMeta
    made: Any = metaclass(name, (base,), namespace, any_name=True)
    return made  # type: ignore[no-any-return]  # a class of its bases


def _refuse_construction(self: Any, *_: Any, **__: Any) -> None:
    raise TypeError(
        f"{type(self).__name__} is a lifted class, whose instances bridge.lift makes. "
        f"Write: bridge.lift({type(self).__name__}(...)) of the nn.Module"
    )


def _reduce(cls: Any) -> Any:
    return (class_for, vars(cls)["_parts"]) if "_parts" in vars(cls) else cls.__qualname__


copyreg.pickle(_LiftedMeta, _reduce)

# -- attributes -----------------------------------------------------------------------------------


def _member(module: Any, blueprint: Blueprint, name: str) -> Any:
    """An attribute, property or method of the original."""
    cls = blueprint.cls
    if name in blueprint.attributes:
        value = blueprint.attributes[name]
        return resolved(value, lambda ref: _referred(module, ref))
    if name == "training":
        return notes.note_of(module).mode == "train"
    where = next((base for base in cls.__mro__ if name in vars(base)), None)
    if where is nn.Module or (where is not None and name in vars(nn.Module)):
        instead = f"Write: {HABITS[name]}" if name in HABITS else "Lower it first: bridge.lower"
        raise AttributeError(f"{cls.__name__}.{name} is of mutable modules. {instead}")
    if where is None:
        if getattr(cls, "__getattr__", None) is not nn.Module.__getattr__:
            return running.read(module, name)
        raise AttributeError(f"lifted {cls.__name__} has no attribute {name!r}")
    found = vars(where)[name]
    if isinstance(found, (staticmethod, classmethod)):
        return getattr(cls, name)
    if inspect.isfunction(found):
        _refuse_writer(cls, name)
        return _method(module, name, found)
    return running.read(module, name) if hasattr(found, "__get__") else found


def _referred(module: Any, ref: Ref) -> Any:
    """What an attribute points at: a lifted module or a leaf below this one."""
    if ref.up:
        raise AttributeError(
            f"an attribute of {type(module).__name__} points at a module or tensor above it, "
            f"which is not known here. Ask the module that holds both"
        )
    found = follow(module, ref.down)
    return weakref.ref(found) if ref.weak else found


def _method(module: Any, name: str, function: Any) -> Any:
    def method(*args: Any, **kwargs: Any) -> Any:
        return running.call(module, name, args, kwargs)

    method.__name__, method.__doc__ = name, function.__doc__
    return method


def _refuse_writer(cls: type, name: str) -> None:
    if name.endswith("_") or name in ("reset_parameters", "flatten_parameters"):
        raise AttributeError(
            f"{cls.__name__}.{name} writes into parameters, which are immutable here. Call it on "
            f"the nn.Module and lift that, or make new leaves: tree.map(..., module)"
        )
