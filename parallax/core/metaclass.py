"""The metaclass: what happens when a module class is defined, called or changed."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typing_extensions
from typing_extensions import dataclass_transform

from parallax._compat.cached import without_locks
from parallax._compat.dynamo import is_compiling
from parallax._errors.habits import Habit, without_habits
from parallax.core import registry, unreachable
from parallax.core.class_body import Scope, collect_fields, collect_overrides, fields_of, resolve
from parallax.core.entries import PLAIN
from parallax.core.fields import field
from parallax.core.frozen import setter_of
from parallax.core.generated_init import write_init
from parallax.core.layout import Layout
from parallax.core.nodes import CLASS_CLOCK, new_with_dict
from parallax.core.sealing import set_fields, write_seal

__all__ = ["ModuleMeta", "place_init", "writes_call"]

_finishing = threading.RLock()
# What constructing an instance needs: ``__new__``, the seal, and every ``__check_init__``.
_Ready = tuple[Callable[..., Any], Callable[[Any], None], tuple[Callable[[Any], None], ...]]


# The metaclass of Protocol, so that a module class can also derive from protocols, generics and
# ABCs. Type checkers know it as ABCMeta, from which it derives.
if TYPE_CHECKING:
    from abc import ABCMeta as _ProtocolMeta
else:
    _ProtocolMeta = type(typing_extensions.Protocol)


# Without frozen_default: with it checkers refuse `self.weight = ...` in __init__, too.
@dataclass_transform(eq_default=False, field_specifiers=(field,))
class ModuleMeta(_ProtocolMeta):
    """Turns a class body into fields, registers the class, and seals the instances it makes."""

    __bare_init__: Callable[..., None]
    __layout__: Layout
    __ready__: _Ready | None
    __scope__: Scope

    # typing_extensions writes these in Python, six times slower; they are for Protocol itself.
    __eq__ = type.__eq__
    __hash__ = type.__hash__

    def __new__(
        mcs,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        init: bool = True,
        kw_only: bool = False,
        any_name: bool = False,
        **kwargs: Any,
    ) -> Any:
        root = _root(bases)
        # A lifted class may have any names, as its nn.Module has.
        reserved = frozenset() if any_name or root is None else _reserved(root)
        own = collect_fields(name, bases, namespace, reserved, kw_only)
        scope = Scope(namespace.get("__module__", ""))
        without_locks(namespace)
        has_init, has_setattr = "__init__" in namespace, "__setattr__" in namespace
        namespace |= {"__own_fields__": own, "__scope__": scope}
        namespace |= {"__layout__": None, "__ready__": None}
        cls: Any = super().__new__(mcs, name, bases, namespace, **kwargs)
        collect_overrides(cls, own)
        for declared in own.values():
            declared.owner = cls if declared.owner is object else declared.owner
        fields = fields_of(cls.__mro__)
        if not has_setattr:
            type.__setattr__(cls, "__setattr__", setter_of(frozenset(fields)))
        # At run time a written __init__ is inherited; type checkers need init=False for that.
        written = has_init or not init or _inherits_init(cls, root)
        type.__setattr__(cls, "__written_init__", written)
        if not written:
            type.__setattr__(cls, "__init__", write_init(cls, fields))
        if root is None:
            type.__setattr__(cls, "__bare_init__", cls.__init__)
        else:
            place_init(cls)
        _alias_call(cls)
        with contextlib.suppress(NameError):  # a forward reference, until the first instance
            _finish(cls)
        return cls

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: Any):
        super().__init__(name, bases, namespace)

    if not TYPE_CHECKING:  # checkers would take its signature as that of every class

        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            make, seal, checks = cls.__ready__ or _finish(cls)
            module = make(cls)
            module.__bare_init__(*args, **kwargs)
            seal(module)
            if checks:
                for check in checks:
                    check(module)
            return module

    @property
    def __signature__(cls) -> inspect.Signature:
        """The arguments of ``__init__``, as ``inspect.signature`` and ``help`` show them."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]  # of this very class
        return signature.replace(
            parameters=list(signature.parameters.values())[1:],
            return_annotation=inspect.Signature.empty,
        )

    def __setattr__(cls, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        _follow(cls, name)

    def __surround__(cls, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Has all calls of this class's own instances go through what ``around`` makes of them."""
        type.__setattr__(cls, "__around__", around)
        if writes_call(cls):
            type.__setattr__(cls, "__call__", around(vars(cls)["__call__"]))
        else:
            _alias_call(cls)
        CLASS_CLOCK.time += 1

    def __dir__(cls) -> list[str]:
        return without_habits(super().__dir__(), map(vars, cls.__mro__))

    def __delattr__(cls, name: str) -> None:
        super().__delattr__(name)
        if name == "__init__":
            type.__delattr__(cls, "__bare_init__")
        _follow(cls, name)


def place_init(cls: Any) -> None:
    """Keeps the ``__init__`` of a class as ``__bare_init__``, and replaces it by one that seals.

    Dynamo makes an instance without calling the metaclass: it calls ``__new__`` and ``__init__``.
    So a module that is made in a trace is sealed by its ``__init__``, which calls the bare one.
    """
    for base in cls.__mro__:
        if "__bare_init__" in vars(base) and base is not cls:
            break  # inherited
        if "__init__" in vars(base) and not getattr(base, "_is_protocol", False):
            type.__setattr__(cls, "__bare_init__", vars(base)["__init__"])
            break

    @functools.wraps(cls.__bare_init__)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls.__bare_init__(self, *args, **kwargs)
        if is_compiling() and type(self) is cls:
            layout = type(self).__layout__
            set_fields(layout, self, layout.fields)
            object.__setattr__(self, "_spec", PLAIN)
            for check in type(self).__ready__[2]:
                check(self)

    type.__setattr__(cls, "__init__", __init__)


def _root(bases: tuple[type, ...]) -> Any:
    """``Module`` itself, as seen from the bases of a class; ``None`` for ``Module``."""
    for base in bases:
        if isinstance(base, ModuleMeta):
            return [cls for cls in base.__mro__ if isinstance(cls, ModuleMeta)][-1]
    return None


def _reserved(root: Any) -> frozenset[str]:
    """The methods and attributes of every module, whose names no field may have."""
    named = [pair for base in root.__mro__ for pair in vars(base).items()]
    return frozenset(
        name for name, value in named if not name.startswith("__") and type(value) is not Habit
    )


def _inherits_init(cls: Any, root: Any) -> bool:
    """Whether a class above this one and below ``Module`` has an ``__init__`` that a user wrote."""
    above = cls.__mro__[1:]
    for base in above if root is None else above[: above.index(root)]:
        if isinstance(base, ModuleMeta):
            return bool(base.__dict__["__written_init__"])
        # The __init__ of a protocol comes from typing, and only raises.
        if "__init__" in vars(base) and not getattr(base, "_is_protocol", False):
            return True
    return False


def _alias_call(cls: Any) -> None:
    """Makes ``__call__`` the function ``forward`` itself, so that a call costs nothing more.

    A ``__call__`` that a user wrote, here or in a base, takes precedence. Classes below follow.
    """
    if not writes_call(cls):
        calls = [vars(base)["__call__"] for base in cls.__mro__ if writes_call(base)]
        calls += [vars(base)["forward"] for base in cls.__mro__ if "forward" in vars(base)]
        around = vars(cls).get("__around__")
        type.__setattr__(cls, "__call__", calls[0] if around is None else around(calls[0]))
        type.__setattr__(cls, "__aliased__", True)
    for sub in type.__subclasses__(cls):
        _alias_call(sub)


def writes_call(cls: Any) -> bool:
    """Whether a user wrote ``__call__`` in this class; that of a protocol does not count."""
    own = vars(cls).get("__call__")
    promised = getattr(cls, "_is_protocol", False) or getattr(own, "__isabstractmethod__", False)
    return own is not None and "__aliased__" not in vars(cls) and not promised


def _follow(cls: Any, changed: str) -> None:
    """Updates what depends on an attribute of a class that was set or deleted."""
    if changed == "__init__":
        place_init(cls)
    CLASS_CLOCK.time += 1
    if changed == "__call__" and "__aliased__" in vars(cls):
        type.__delattr__(cls, "__aliased__")
    if changed in ("forward", "__call__"):
        _alias_call(cls)


def _finish(cls: Any) -> _Ready:
    """Resolves the annotations and registers the class, once; returns what construction needs."""
    with _finishing:
        if cls.__ready__ is not None:  # another thread was first
            return cls.__ready__  # type: ignore[no-any-return]  # set below
        layout = resolve(cls)
        type.__setattr__(cls, "__layout__", layout)
        unreachable.forget_unreachable(cls)
        registry.register_module(layout)
        unreachable.remember(cls)
        checks = [b.__dict__["__check_init__"] for b in cls.__mro__ if "__check_init__" in vars(b)]
        make = cls.__new__
        if sys.version_info[:2] == (3, 13) and make is object.__new__:
            make = new_with_dict
        ready = make, write_seal(layout), tuple(reversed(checks))
        type.__setattr__(cls, "__ready__", ready)
        return ready
