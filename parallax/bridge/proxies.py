"""Proxies: what ``self`` is while a lowered module runs the code of the class it stands for.

A proxy is a tree of the user's class. Its fields are the tensors that the ``nn.Module`` holds now,
and proxies of the modules below, of which a call is a call of the ``nn.Module``, with its hooks. So
the code of the tree runs as it is, and what is done to the ``nn.Module`` has its effect.

Code that takes a proxy apart gets a tree as it was before it was lowered, around the tensors of
now. Calls of that do not go through the modules any more, so modules that are not as they were made
are refused there.
"""

from __future__ import annotations

import threading
from abc import ABCMeta
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from parallax._compat import dynamo
from parallax._compat.opaque import real
from parallax.bridge.changes import require_as_made
from parallax.bridge.holders import holds_modules
from parallax.bridge.mirrors import layer_of
from parallax.bridge.places import (
    MODES,
    flags_of,
    gathered,
    held,
    structure_in,
    with_modes,
)
from parallax.core import notes
from parallax.core.entries import PLAIN, SLOT, Leaf, Static, local_of
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import Instance
from parallax.core.registry import flatten_module, register_module, unflatten_module
from parallax.core.structure import Structure, structure_of
from parallax.tree.state_names import names_within

if TYPE_CHECKING:
    from parallax.bridge.runs import Run

__all__ = ["proxy_of"]

# -- one class of proxies for each class of modules -----------------------------------------------


_CALL = nn.Module.__call__


def _called(self: Any, *args: Any, **kwargs: Any) -> Any:
    module = self._behind[0]
    # What torch's own ``__call__`` does, at once: with its frames, 143 levels were too deep for
    # Python. Tracers put another one in its place, and dynamo knows it.
    known = type(module).__call__ is _CALL and module._compiled_call_impl is None
    if known and not dynamo.is_compiling():
        return module._call_impl(*args, **kwargs)
    return module(*args, **kwargs)


def _mode(self: Any) -> str:
    return MODES[self._behind[0].training]


def _structure(self: Any) -> Structure:
    module, _, path = self._behind
    structure: Structure = structure_in(module)
    structure = with_modes(structure, flags_of(module, structure))
    return notes.addressed(structure, path)


def _taken_apart(self: Any) -> tuple[Any, ...]:
    module, _, path = self._behind
    structure: Structure = structure_in(module)
    require_as_made(module, structure, path)
    return tuple(gathered(module, structure))


def _rng(self: Any) -> Any:
    return self._behind[1].rng()


def _field(self: Any, name: str) -> Any:
    """A field of a proxy that was made for a call, and is read."""
    cls = type(self)
    if _is_field(cls, name):
        whole = proxy_of(*self._behind)
        if not dynamo.is_compiling():
            self.__dict__.update(whole.__dict__)
        return getattr(whole, name)
    above = getattr(cls.__mro__[1], "__getattr__", None)
    if above is None:
        raise AttributeError(f"{cls.__name__!r} object has no attribute {name!r}")
    return above(self, name)


@real
def _is_field(cls: Any, name: str) -> bool:
    return name in cls.__layout__.fields


def _replace(self: Any, **fields: Any) -> Any:
    leaves, structure = flatten_module(self)
    return unflatten_module(structure, leaves, self._rng).replace(**fields)


_SHARED = {
    "__call__": _called,
    "__getattr__": _field,
    "_leaves": property(_taken_apart),
    "_rng": property(_rng),
    "_spec": property(_structure),
    "mode": property(_mode),
    "replace": _replace,
}
_making = threading.Lock()


def _class_of(structure: Structure) -> Any:
    """The class of proxies of a structure's class; one for each, as long as that is registered."""
    layout: Any = structure.cls.__layout__  # type: ignore[attr-defined]  # a module class
    found = layout.proxy
    if found is None:
        with _making:
            found = layout.proxy = layout.proxy or _made_class(structure.cls)
    return found


_class_in_trace = real(_class_of)


def _made_class(cls: Any) -> Any:
    new, *rest = cls.__ready__
    space = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    space |= _SHARED
    space |= {name: _hidden(name) for name in cls.__layout__.fields if hasattr(cls, name)}
    space["__ready__"] = (lambda _: new(cls), *rest)  # type(self)(...) makes no proxy
    # Not made by the metaclass, which gives a class fields, nor below the class, whose
    # ``__init_subclass__`` a user may have written to know all classes.
    made: Any = ABCMeta.__new__(type(cls), cls.__name__, (Instance,), space)
    type.__setattr__(made, "__bases__", (cls,))
    register_module(cls.__layout__, made, "proxy")
    return made


def _hidden(name: str) -> property:
    """A field that a class above has a method or value for: ``__getattr__`` is not asked."""

    def read(self: Any) -> Any:
        found = self.__dict__.get(name, _hidden)
        return _field(self, name) if found is _hidden else found

    return property(read)


# -- making them ----------------------------------------------------------------------------------


def proxy_of(module: nn.Module, run: Run, path: str) -> Any:
    """The proxy of a lowered module, with all its fields.

    Args:
        module: a lowered module.
        run: the call that it belongs to.
        path: of the module in the tree of that call.
    """
    structure: Structure = structure_in(module)
    behind = (module, run, path)
    if dynamo.is_compiling():
        traced, slots = _alone_in_trace(structure)
        proxy = traced.itself().traced("build")(_values(slots, behind, _class_in_trace))
        object.__setattr__(proxy, "_behind", behind)
        return proxy
    alone, slots = structure.variants.get("alone") or _alone(structure)
    proxy = alone.build(_values(slots, behind, _class_of))
    proxy.__dict__["_behind"] = behind
    return proxy


# Where a value comes from: what it is (a leaf, a part, a list of parts, a tree), the names of the
# modules that lead to it, its name there, and its path in the tree.
Slot = tuple[str, tuple[str, ...], Any, str]


_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _values(
    slots: tuple[Slot, ...], behind: Any, class_of: Callable[[Structure], Any]
) -> list[Any]:
    """The leaves and parts of a proxy."""
    root, run, path = behind
    prefix = f"{path}." if path else ""
    values: list[Any] = []
    for kind, steps, name, inner in slots:
        if kind == "tree":
            values.append(_tree(root, run, path, name))
            continue
        holder = _led(root, steps) if steps else root
        home = holder._parameters if kind == "leaf" else holder._modules
        value: Any = home[name] if name in home else _other(holder, name, root)
        if kind == "list" and (name is None or isinstance(value, _LISTS)):
            names = value._modules
            parts = [
                _part(below, run, f"{prefix}{inner}.{key}", class_of)
                for key, below in names.items()
            ]
            keyed = isinstance(value, nn.ModuleDict)
            values.append(FrozenDict(zip(names, parts, strict=True)) if keyed else tuple(parts))
        elif isinstance(value, nn.Module):
            values.append(_part(value, run, prefix + inner, class_of))
        else:
            values.append(value)
    return values


def _part(module: Any, run: Run, path: str, class_of: Callable[[Structure], Any]) -> Any:
    """The proxy of a module below another. It waits with its fields until one is read."""
    structure = structure_in(module)
    if structure is None:  # what somebody put in the place of a lowered module
        return module
    part = object.__new__(class_of(structure))
    # Spelled out, not as _set: dynamo takes an alias for the __setattr__ of the class.
    object.__setattr__(part, "_behind", (module, run, path))
    return part


def _led(root: Any, steps: tuple[str, ...]) -> Any:
    """The module below another that names lead to."""
    module = root
    for step in steps:
        below = module._modules
        module = below[step] if step in below else _other(module, step, root)
    return module


def _other(holder: Any, name: Any, root: nn.Module) -> Any:
    """What stands under a name elsewhere than where it was put; without a name the module."""
    if name is None:
        return holder
    try:
        return held(holder, name)
    except AttributeError:
        structure: Structure = structure_in(root)
    raise RuntimeError(
        f"{structure.cls.__name__}: {name!r} was taken out of what bridge.lower made, and forward "
        f"has fields for all. Put None in its place, which forward can ask for; or take it out of "
        f"the tree before it is lowered"
    )


def _tree(module: nn.Module, run: Run, path: str, index: int) -> Any:
    """A part that has no ``nn.Module`` of its own, so that it is the tree itself."""
    structure: Structure = structure_in(module)
    require_as_made(module, structure, "")
    whole = notes.addressed(with_modes(structure, flags_of(module, structure)), path)
    leaves = gathered(module, structure)
    start, node = _node_at(whole, index)
    places = leaves if whole.expand is None else [leaves[k] for k in whole.expand]
    own = places[start : start + node.n_places]
    unique = own if node.expand is None else [own[k] for k in node.first]
    return unflatten_module(node, unique, run.rng())


@real
def _node_at(structure: Structure, index: int) -> tuple[int, Structure]:
    nodes = [(start, node) for _, start, node in structure.walk() if type(node) is Structure]
    return nodes[index]


# -- what a proxy is built from -------------------------------------------------------------------


def _alone(structure: Structure) -> tuple[Structure, tuple[Slot, ...]]:
    """The structure of one module alone, those below as leaves; and where its leaves come from."""
    found = _Alone(structure)
    made = found.node(structure, 0, "", _class_of(structure)), tuple(found.slots)
    structure.variants["alone"] = made
    return made


@real
def _alone_in_trace(structure: Structure) -> tuple[Any, tuple[Slot, ...]]:
    return structure.variants.get("alone") or _alone(structure)


class _Alone:
    """Finds where the leaves of one module alone come from."""

    def __init__(self, structure: Structure) -> None:
        names, self.begins = names_within(structure)
        self.names = iter(names)
        self.in_sequence = layer_of(structure.cls) is nn.Sequential
        self.slots: list[Slot] = []

    def node(self, node: Structure, index: int, path: str, cls: type) -> Structure:
        """The structure without the modules below.

        Args:
            node: the module, or a container in it.
            index: of the node in preorder.
            path: of the node in the module.
            cls: of the proxy, or of the container.
        """
        children: list[Any] = []
        below = index + 1
        for key, child in zip(node.keys(), node.children, strict=True):
            inner = f"{path}.{key}" if path else str(key)
            if type(child) is Leaf:
                *steps, name = next(self.names).split(".")
                self.slots.append(("leaf", tuple(steps), name, inner))
                children.append(SLOT)
            elif type(child) is Static:
                children.append(child)
            elif (slot := self.slot(child, below, inner)) is not None:
                for _ in range(child.n_places):
                    next(self.names)
                self.slots.append(slot)
                children.append(SLOT)
            else:
                children.append(self.node(child, below, inner, child.cls))
            below += child.shape.n_nodes if type(child) is Structure else 0
        local = node.local
        return structure_of(local_of(cls, local.constants, local.key, PLAIN), tuple(children))

    def slot(self, node: Structure, index: int, path: str) -> Slot | None:
        """Where a node comes from; ``None`` for a container that is looked into."""
        begin = self.begins[index]
        *steps, name = begin[:-1].split(".")
        if not hasattr(node.cls, "__layout__"):
            if self.in_sequence:  # itself is the list, and its functions are modules
                return "list", (), None, path
            fits = holds_modules(node) and begin not in self.begins[:index]
            return ("list", tuple(steps), name, path) if fits else None
        if begin in self.begins[:index]:
            return "tree", (), index, path
        return "part", tuple(steps), name, path
