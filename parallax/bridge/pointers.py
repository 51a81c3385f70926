"""References from attributes of modules into the model, as relative paths instead of objects.

Attributes may point at tensors or modules of the same model: a list of weights, a bound method, a
function around a sibling, an object that knows its owner. ``Detaching`` makes such a value one
in which each pointer is a ``Ref``, a relative path; ``resolved`` makes it point again.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["ATOMS", "Detaching", "Ref", "changeable", "points_at_tensors", "ref_to", "resolved"]

Path = tuple[str, ...]
Follow = Callable[["Ref"], Any]

ATOMS = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, torch.dtype, torch.device}
    | {torch.Size, types.ModuleType}
)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_MAPPINGS = (dict, OrderedDict, Counter, defaultdict)


class Ref:
    """A tensor or module of the same model, by its path from the module that points at it."""

    __slots__ = ("down", "tensor", "up", "weak")

    def __init__(self, up: int, down: Path, tensor: bool, weak: bool = False) -> None:
        self.up = up  # how many levels to climb first
        self.down = down
        self.tensor = tensor
        self.weak = weak

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        return self.up, self.down, self.tensor, self.weak

    def __repr__(self) -> str:
        return f"Ref({'^' * self.up}{'.'.join(self.down)})"


class Partial:
    """A ``functools.partial`` around a part of the model."""

    def __init__(self, function: Any, args: Any, keywords: Any) -> None:
        self.function = function
        self.args = args
        self.keywords = keywords


class Bound:
    """A method bound to a part of the model."""

    def __init__(self, function: Callable[..., Any], to: Any) -> None:
        self.function = function
        self.to = to


class Around:
    """A function that closes over a part of the model, or has one for a default."""

    def __init__(self, function: types.FunctionType, each: Callable[[Any], Any]) -> None:
        self.code = function.__code__
        self.globals = function.__globals__
        self.names = (function.__name__, function.__qualname__, function.__doc__)
        self.cells = [each(content) for content in _cells(function)]
        self.defaults = each(function.__defaults__)
        self.keywords = each(function.__kwdefaults__)

    def function(self, each: Callable[[Any], Any]) -> types.FunctionType:
        """The function, around what takes the place of that part."""
        cells = tuple([types.CellType(each(content)) for content in self.cells])
        name = self.names[0]
        made = types.FunctionType(self.code, self.globals, name, each(self.defaults), cells)
        made.__kwdefaults__ = each(self.keywords)
        _, made.__qualname__, made.__doc__ = self.names
        return made


class Knowing:
    """An object that holds parts of the model among its attributes."""

    def __init__(self, cls: type, attributes: dict[str, Any]) -> None:
        self.cls = cls
        self.attributes = attributes


class Detaching:
    """Detaches the attributes of the modules of one model.

    Args:
        known: the path of every tensor and module of the model, by ``id``.
    """

    def __init__(self, known: dict[int, Path]) -> None:
        self.known = known
        self.apart: set[int] = set()  # objects that lead to no part of the model
        self.open: set[int] = set()

    def detached(self, value: Any, path: Path) -> Any:
        """A value without any pointer into the model; containers in it are new.

        Args:
            value: an attribute.
            path: of the module that has it.

        Raises:
            TypeError: if it points at the model in a way that cannot be followed.
        """
        cls = type(value)
        if cls in ATOMS:
            return value
        if isinstance(value, (nn.Module, Tensor)) and id(value) in self.known:
            return ref_to(path, self.known[id(value)], isinstance(value, Tensor))
        if isinstance(value, Tensor):
            return value.detach() if value.grad_fn is not None else value
        if cls in _SEQUENCES or cls in _MAPPINGS:
            return _rebuilt(value, lambda item: self.detached(item, path))
        return self._pointing(value, path) if self.leads(value) else value

    def _pointing(self, value: Any, path: Path) -> Any:
        if id(value) in self.open:
            raise TypeError(
                f"bridge.lift: {'.'.join(path) or 'the module'} has an attribute that leads to "
                f"itself and to a part of the model, by way of a {type(value).__name__}. Hold the "
                f"module itself as an attribute instead"
            )
        self.open.add(id(value))
        try:
            return self._replaced(value, path, lambda item: self.detached(item, path))
        finally:
            self.open.discard(id(value))

    def _replaced(self, value: Any, path: Path, each: Callable[[Any], Any]) -> Any:
        cls = type(value)
        if cls is weakref.ReferenceType:
            target = value()
            return ref_to(path, self.known[id(target)], isinstance(target, Tensor), weak=True)
        if cls is types.MethodType:
            return Bound(value.__func__, each(value.__self__))
        if cls is types.BuiltinMethodType:
            return Bound(getattr(type(value.__self__), value.__name__), each(value.__self__))
        if cls is types.FunctionType:
            return Around(value, each)
        if cls is functools.partial:
            return Partial(each(value.func), each(value.args), each(value.keywords))
        slots = any(vars(base).get("__slots__") for base in cls.__mro__)
        makes: Any = cls.__new__
        if slots or makes is not object.__new__:
            raise TypeError(
                f"bridge.lift: {'.'.join(path) or 'the module'} holds parts of the model in a "
                f"{cls.__name__}, which cannot be made anew. Hold them in a dict, list or tuple"
            )
        return Knowing(cls, {name: each(item) for name, item in vars(value).items()})

    def leads(self, value: Any) -> bool:
        """Whether a value leads to a part of the model."""
        stack, seen = [value], set[int]()
        while stack:
            item = stack.pop()
            if type(item) in ATOMS or id(item) in self.apart or id(item) in seen:
                continue
            if id(item) in self.known and isinstance(item, (nn.Module, Tensor)):
                return True
            seen.add(id(item))
            stack += _inside(item)
        self.apart |= seen
        return False


def _inside(value: Any) -> Iterator[Any]:
    """What a value holds."""
    cls = type(value)
    if cls is weakref.ReferenceType:
        target = value()
        if isinstance(target, (nn.Module, Tensor)):  # others are not held by it
            yield target
    elif cls in (types.MethodType, types.BuiltinMethodType):
        yield value.__self__
    elif cls is types.FunctionType:
        yield from _cells(value)
        yield from (value.__defaults__, value.__kwdefaults__)
    elif cls is functools.partial:
        yield from (value.func, value.args, value.keywords)
    elif not isinstance(value, (Tensor, type)):
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, _SEQUENCES):
            yield from value
        if hasattr(value, "__dict__"):
            yield from vars(value).values()


def _cells(function: types.FunctionType) -> Iterator[Any]:
    """What a function closes over."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not bound yet
            yield None


def _rebuilt(value: Any, each: Callable[[Any], Any]) -> Any:
    """A container with ``each`` of its items; what is no container is itself."""
    cls: Any = type(value)
    if cls is deque:
        return deque([each(item) for item in value], value.maxlen)
    if cls in _SEQUENCES:
        return cls([each(item) for item in value])
    if cls is defaultdict:
        return defaultdict(value.default_factory, {k: each(v) for k, v in value.items()})
    if cls in _MAPPINGS:
        made: Any = cls
        return made({key: each(item) for key, item in value.items()})
    return value


def ref_to(start: Path, target: Path, tensor: bool = False, weak: bool = False) -> Ref:
    """The pointer from a module at ``start`` to what stands at ``target``."""
    shared = 0
    for one, two in zip(start, target, strict=False):
        if one != two:
            break
        shared += 1
    return Ref(len(start) - shared, target[shared:], tensor, weak)


def resolved(value: Any, follow: Follow) -> Any:
    """A value with what each ``Ref`` in it points at; containers are new."""

    def each(item: Any) -> Any:
        return resolved(item, follow)

    cls = type(value)
    if cls is Ref:
        return follow(value)
    if cls is Bound:
        to = each(value.to)
        return None if to is None else types.MethodType(value.function, to)
    if cls is Around:
        return value.function(each)
    if cls is Knowing:
        made = object.__new__(value.cls)
        vars(made).update(each(value.attributes))
        return made
    if cls is Partial:
        function = each(value.function)  # None while tensors are not bound, as in Bound
        args, keywords = each(value.args), each(value.keywords)
        return None if function is None else functools.partial(function, *args, **keywords)
    return _rebuilt(value, each)


def changeable(value: Any) -> Iterator[Any]:
    """The objects in a detached value that somebody else holds and can change."""
    cls = type(value)
    if cls in ATOMS or cls is Ref:
        return
    if cls in (Bound, Partial, Around, Knowing) or cls in _SEQUENCES or cls in _MAPPINGS:
        for item in _inside(value):
            yield from changeable(item)
    elif not (cls is types.FunctionType and value.__closure__ is None):
        yield value


def points_at_tensors(value: Any) -> bool:
    """Whether a detached value points at tensors, which are others in each call."""
    found: list[Ref] = []

    def note(ref: Ref) -> Ref:
        found.append(ref)
        return ref

    resolved(value, note)
    return any(ref.tensor for ref in found)
