"""From an annotation to a kind: which values a field holds, and which of them are leaves.

The annotation alone decides. ``Parameter`` and ``Buffer`` are leaves, modules and registered
nodes are children, everything else is a constant; ``tuple``, ``list``, ``dict`` and named tuples
of leaves or children are containers of them.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import sys
import types
import typing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, Union

import torch
import typing_extensions
from torch import Tensor

from parallax._compat.opaque import constant_while_tracing
from parallax.core.containers import is_named_tuple
from parallax.core.entries import BUFFER, PARAMETER, SLOT, Leaf
from parallax.core.fields import Buffer, Parameter
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import NODES, is_node

__all__ = ["Kind", "array_of", "evaluate", "is_class_variable", "kind_of"]

_SEQUENCES = (tuple, list, collections.abc.Sequence, collections.abc.MutableSequence,
              collections.abc.Iterable, collections.abc.Collection)  # fmt: skip
_MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@constant_while_tracing
@dataclass(frozen=True)
class Kind:
    """What a value of a field may be; several at once for a union."""

    leaf: type | None = None
    child: bool = False
    constant: bool = False
    optional: bool = False
    items: tuple[Kind, ...] | None = None
    variadic: bool = False
    mapping: Kind | None = None

    @property
    def inner(self) -> tuple[Kind, ...]:
        """The kinds of what a container holds; empty where no container is allowed."""
        return (*(self.items or ()), *((self.mapping,) if self.mapping else ()))

    @property
    def dynamic(self) -> bool:
        """Whether the value is part of the tree."""
        return bool(self.leaf or self.child or self.inner)

    @property
    def flat(self) -> bool:
        """Whether it is one leaf, one module or a hole, and not a container or a constant."""
        return (self.leaf is not None) != self.child and not (self.constant or self.inner)

    @cached_property
    def deep(self) -> bool:
        """Whether a container may hold containers or constants."""
        return not all(kind.flat for kind in self.inner)

    @property
    def mixed(self) -> bool:
        """Whether a constant may stand in a child's place, here or inside a container."""
        return self.constant or any(kind.mixed for kind in self.inner)

    def role(self) -> Leaf:
        """The role of a leaf in the place of a value of this kind."""
        return SLOT if self.leaf is None else _ROLES.get(self.leaf, BUFFER)

    def holds(self, cls: type) -> bool:
        """Whether an instance of a class is a container here, and not a constant."""
        if cls is FrozenDict:
            return self.mapping is not None
        return cls in NODES or (self.items is not None and (cls is tuple or is_named_tuple(cls)))

    def below(self, cls: type, count: int) -> tuple[Kind, ...]:
        """The kind of each child of a container of this class."""
        if cls in NODES:
            return (_ANY,) * count
        each: Any = (self.mapping,) if cls is FrozenDict else self.items
        return each * (count // len(each))  # type: ignore[no-any-return]  # kinds


_ROLES: dict[type, Leaf] = {Parameter: PARAMETER, Tensor: SLOT}
CONSTANT = Kind(constant=True)
_ANY = Kind(leaf=Tensor, child=True, optional=True)  # inside a registered node


def is_class_variable(annotation: Any) -> bool:
    """Whether an annotation, or its text, declares a class variable rather than a field."""
    if isinstance(annotation, str):
        head = annotation.strip("'\" ").split("[")[0].strip()
        return head.rsplit(".", 1)[-1] == "ClassVar"
    return annotation is typing.ClassVar or typing.get_origin(annotation) is typing.ClassVar


def evaluate(annotation: Any, owner: type, names: dict[str, Any], where: str) -> Any:
    """Evaluates the text of an annotation; a ``NameError`` if a name in it has no value yet."""
    parameters = {param.__name__: param for param in getattr(owner, "__type_params__", ())}
    scope, body = {**names, **parameters, owner.__name__: owner}, dict(vars(owner))
    while isinstance(annotation, (str, typing.ForwardRef)):
        text = annotation if isinstance(annotation, str) else annotation.__forward_arg__
        try:
            if sys.version_info >= (3, 14) and isinstance(annotation, typing.ForwardRef):
                # Parts of it may be objects without a name in the text.
                annotation = annotation.evaluate(globals=scope, locals=body)
            else:
                annotation = eval(text, scope, body)
        except AttributeError as error:  # of a module that is still being imported
            raise NameError(str(error)) from None
        except (SyntaxError, TypeError) as error:
            raise TypeError(f"{where} is annotated {text!r}, which is no type: {error}") from None
    return annotation


def array_of(hint: Any) -> Any:
    """``Parameter`` for ``Float[Parameter, "out in"]`` of jaxtyping; ``None`` for any other."""
    jaxtyping = sys.modules.get("jaxtyping")  # whose annotations nobody has without it
    if jaxtyping is None or not isinstance(hint, type):
        return None
    known: Any = hint
    return known.array_type if issubclass(known, jaxtyping.AbstractArray) else None


def kind_of(annotation: Any, owner: type, names: dict[str, Any], where: str) -> Kind:
    """The kind that an annotation, or its text, declares.

    ``Self`` and the name of ``owner`` mean that class; ``names`` are visible where it was written.
    """

    def resolve(hint: Any) -> Kind:
        return kind_of(hint, owner, names, where)

    hint = evaluate(annotation, owner, names, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return Kind(optional=True)
    array = array_of(hint)
    if array is not None:
        if isinstance(array, type) and issubclass(array, Tensor):
            dims = f"{hint.dtype.__name__}[{{}}, {hint.dim_str!r}]"
            raise TypeError(_untrained(where, array.__name__, dims))
        return resolve(array)
    if origin in (typing.Annotated, typing.Final, typing_extensions.Annotated):
        return resolve(args[0])
    if hint is typing_extensions.Self:
        return resolve(owner)
    if isinstance(hint, TypeVar):
        bounds = hint.__constraints__ or ((hint.__bound__,) if hint.__bound__ else ())
        return _union([resolve(bound) for bound in bounds], where) if bounds else CONSTANT
    if hasattr(hint, "__supertype__"):  # a NewType
        return resolve(hint.__supertype__)
    if isinstance(hint, dataclasses.InitVar):
        raise TypeError(f"{where}: InitVar is not supported; write an __init__ that takes it")
    if origin is typing.ClassVar:
        raise TypeError(f"{where}: write the annotation as 'ClassVar[...]', under that name")
    if origin is typing_extensions.Unpack or getattr(hint, "__unpacked__", False):
        raise TypeError(f"{where}: a tuple unpacked into a tuple is not supported; use two fields")
    if origin in (Union, types.UnionType):
        return _union([resolve(arg) for arg in args], where)
    if origin in _SEQUENCES and args:
        variadic = origin is not tuple or (len(args) == 2 and args[1] is Ellipsis)
        kinds = tuple(resolve(arg) for arg in args if arg is not Ellipsis and arg != ())
        return _container(Kind(items=kinds, variadic=variadic), kinds)
    if origin in _MAPPINGS and len(args) == 2:
        value = resolve(args[1])
        return _container(Kind(mapping=value), (value,))
    if isinstance(origin, type) and issubclass(origin, collections.abc.Collection):
        for arg in args:
            if resolve(arg).dynamic:
                raise TypeError(
                    f"{where} is annotated {hint}: leaves and modules are held by tuples, lists "
                    f"and dicts (as values). Write 'tuple[..., ...]' or 'dict[str, ...]'."
                )
        return CONSTANT
    return _class_kind(origin if isinstance(origin, type) else hint, where, resolve)


def _untrained(where: str, annotated: str, dims: str = "{}") -> str:
    """The message for an annotation of a plain tensor, in jaxtyping's ``dims`` or without."""
    name = where.rsplit(".", 1)[-1]
    return (
        f"{where} is annotated {dims.format(annotated)}, which does not say whether it is trained. "
        f"Write '{name}: {dims.format('Parameter')}' (trained) or "
        f"'{name}: {dims.format('Buffer')}' (never trained), both from parallax."
    )


def _class_kind(cls: Any, where: str, resolve: Any) -> Kind:
    if cls is Parameter or cls is Buffer:
        return Kind(leaf=cls)
    if not isinstance(cls, type):
        return CONSTANT
    if issubclass(cls, Tensor):
        raise TypeError(_untrained(where, f"{cls.__module__}.{cls.__qualname__}"))
    if issubclass(cls, torch.nn.Module):
        raise TypeError(
            f"{where} is annotated {cls.__module__}.{cls.__qualname__}, a mutable torch.nn.Module. "
            f"A tree holds immutable modules: write '{where.rsplit('.', 1)[-1]}: Module' and "
            f"assign a parallax.Module, such as bridge.lift(...) of it."
        )
    if is_node(cls):
        return Kind(child=True)
    names: Any = getattr(cls, "_fields", None)
    if issubclass(cls, tuple) and names is not None:
        hints = getattr(cls, "__annotations__", {})
        kinds = tuple(resolve(hints[n]) if n in hints else CONSTANT for n in names)
        return _container(Kind(items=kinds), kinds)
    return CONSTANT


def _container(kind: Kind, inner: tuple[Kind, ...]) -> Kind:
    """The kind of a container, or of a constant if nothing in it is part of the tree."""
    return kind if any(item.dynamic for item in inner) else CONSTANT


def _union(kinds: list[Kind], where: str) -> Kind:
    leaves = {kind.leaf for kind in kinds if kind.leaf}
    sequences = {(kind.items, kind.variadic) for kind in kinds if kind.items is not None}
    mappings = {kind.mapping for kind in kinds if kind.mapping}
    constant = any(kind.constant for kind in kinds)
    if len(leaves) > 1:
        raise TypeError(
            f"{where}: a leaf is either a Parameter or a Buffer, not both; use two fields"
        )
    if leaves and constant:
        raise TypeError(
            f"{where} mixes a leaf with a constant, so its kind would depend on the value. "
            f"Use 'Parameter | None' (or 'Buffer | None') and a second field for the constant."
        )
    if len(sequences) > 1 or len(mappings) > 1:
        raise TypeError(f"{where}: a union of two containers is ambiguous; use two fields")
    items, variadic = sequences.pop() if sequences else (None, False)
    return Kind(
        leaf=leaves.pop() if leaves else None,
        child=any(kind.child for kind in kinds),
        constant=constant,
        optional=any(kind.optional for kind in kinds),
        items=items,
        variadic=variadic,
        mapping=mappings.pop() if mappings else None,
    )
