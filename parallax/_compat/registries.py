"""How classes become nodes of torch's and optree's pytrees.

``torch.utils._pytree`` is private as a whole, and there is no other way to make ``torch.func``,
``torch.compile`` and ``torch.export`` see into a class. optree lets a class into its global
namespace only by an object that it does not export.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import optree
from torch.utils import _pytree as torch_pytree

# optree names its global namespace by an object of a mangled name only.
_OPTREE_GLOBAL: Any = vars(optree.registry)["__GLOBAL_NAMESPACE"]
TORCH_TABLES = (torch_pytree.SUPPORTED_NODES, torch_pytree._LEAF_SPEC)
"""The nodes that torch knows, a table that loses only unreachable classes, and its one leaf."""

Context = Any
KeyPath = Any


def is_torch_node(cls: type) -> bool:
    """Whether torch's own pytree registry knows ``cls``."""
    return cls in torch_pytree.SUPPORTED_NODES


def is_optree_node(cls: type, namespace: str = "") -> bool:
    """Whether optree's registry knows ``cls`` in ``namespace`` (``""`` is the global one)."""
    return optree.register_pytree_node.get(cls, namespace=namespace) is not None


def adopt_torch_node(cls: type, namespace: str) -> bool:
    """Has optree take instances of a class apart as torch does; false if torch does not.

    In one namespace of optree's only. The keys of torch's paths become entries.
    """
    known = torch_pytree.SUPPORTED_NODES.get(cls)
    if known is None:
        return False

    def flatten(value: Any) -> tuple[Any, Foreign, Any]:
        children, context = known.flatten_fn(value)
        with_keys = known.flatten_with_keys_fn
        keys = range(len(children)) if with_keys is None else [k for k, _ in with_keys(value)[0]]
        return children, Foreign(context), tuple([_entry(key) for key in keys])

    def unflatten(metadata: Any, children: Any) -> Any:
        value: Any = known.unflatten_fn(list(children), metadata.context)
        if type(value) is not cls:
            raise TypeError(
                f"a {cls.__name__} cannot be built around {_kinds(children)}: "
                f"its unflatten function in torch.utils._pytree returned {type(value).__name__}"
            )
        return value

    try:
        optree.register_pytree_node(cls, flatten, unflatten, namespace=namespace)
    except ValueError:
        if not is_optree_node(cls, namespace):  # else another thread was here first
            raise
    return True


class Foreign:
    """What torch keeps of a node beside its children. Hashable, as optree asks for."""

    __slots__ = ("context",)

    def __init__(self, context: Context) -> None:
        self.context = context

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and bool(self.context == other.context)

    def __hash__(self) -> int:
        return hash(Foreign)

    def __repr__(self) -> str:
        return repr(self.context)


def _entry(key: Any) -> Any:
    """What torch's key of a child names it by."""
    for name in ("key", "idx", "name"):
        if hasattr(key, name):
            return getattr(key, name)
    return key


def _kinds(children: Any) -> str:
    return ", ".join(sorted({type(child).__name__ for child in children}))


def register_optree_node(
    cls: type, flatten: Callable[..., Any], unflatten: Callable[..., Any], *, entry: type
) -> None:
    """Registers ``cls`` in optree's global namespace, which every namespace falls back to."""
    optree.register_pytree_node(
        cls, flatten, unflatten, path_entry_type=entry, namespace=_OPTREE_GLOBAL
    )


def unregister_optree_node(cls: type) -> None:
    """Takes back ``register_optree_node``."""
    optree.unregister_pytree_node(cls, namespace=_OPTREE_GLOBAL)


def register_torch_node(
    cls: type,
    flatten: Callable[[Any], tuple[list[Any], Context]],
    unflatten: Callable[[Any, Context], Any],
    flatten_with_keys: Callable[[Any], tuple[list[tuple[KeyPath, Any]], Context]],
    *,
    name: str,
    dump_context: Callable[[Context], Any],
    load_context: Callable[[Any], Context],
) -> None:
    """Registers ``cls`` with ``torch.utils._pytree`` under a serialisable ``name``."""
    torch_pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=name,
        to_dumpable_context=dump_context,
        from_dumpable_context=load_context,
        flatten_with_keys_fn=flatten_with_keys,
    )


def unregister_torch_node(cls: type) -> None:
    """Takes back ``register_torch_node``; its name goes on to stand for a later class of it."""
    with torch_pytree._NODE_REGISTRY_LOCK:
        torch_pytree.SUPPORTED_NODES.pop(cls)
        name = torch_pytree.SUPPORTED_SERIALIZED_TYPES.pop(cls).serialized_type_name
        if torch_pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name) is cls:
            del torch_pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name]
        # torch registers classes with optree, too, from when its form of pytrees in C++ is loaded.
        pending = torch_pytree._cxx_pytree_pending_imports
        pending[:] = [item for item in pending if item[0][0] is not cls]
        if torch_pytree._cxx_pytree_imported:
            optree.unregister_pytree_node(cls, namespace="torch")


def functions_of(cls: type) -> tuple[FunctionType, FunctionType]:
    """What ``cls`` was registered with in optree: how it is taken apart and put together."""
    entry: Any = optree.register_pytree_node.get(cls, namespace=_OPTREE_GLOBAL)
    return entry.flatten_func, entry.unflatten_func


def references_to_registered() -> int:
    """How many references both registries hold to each class that is registered."""
    return _references_to_registered(bool(torch_pytree._cxx_pytree_imported))


@functools.cache
def _references_to_registered(in_cxx: bool) -> int:
    class Probe:
        pass

    def flatten(value: Any) -> Any:
        return (), None

    def unflatten(*_: Any) -> Any:
        return None

    before = sys.getrefcount(Probe)
    register_optree_node(Probe, flatten, unflatten, entry=optree.AutoEntry)
    register_torch_node(
        Probe, flatten, unflatten, flatten, name="parallax.Probe", dump_context=str,
        load_context=str,
    )  # fmt: skip
    found = sys.getrefcount(Probe) - before
    unregister_torch_node(Probe)
    unregister_optree_node(Probe)
    # That the name now stands for a later class is one less for each but the last.
    return found - 1


def mapping_key(name: str) -> KeyPath:
    """A key-path entry; ``torch.export`` refuses an attribute key with a dot, not a mapping key."""
    return torch_pytree.MappingKey(name)
