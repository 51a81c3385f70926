"""How classes become nodes of torch's and optree's pytrees.

``torch.utils._pytree`` is private as a whole, and there is no other way to make ``torch.func``,
``torch.compile`` and ``torch.export`` see into a class. optree lets a class into its global
namespace only by an object that it does not export.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
from torch.utils import _pytree as torch_pytree

# optree names its global namespace by an object of a mangled name only.
_OPTREE_GLOBAL: Any = vars(optree.registry)["__GLOBAL_NAMESPACE"]
Context = Any
KeyPath = Any


def is_torch_node(cls: type) -> bool:
    """Whether torch's own pytree registry knows ``cls``."""
    return cls in torch_pytree.SUPPORTED_NODES


def is_optree_node(cls: type, namespace: str = "") -> bool:
    """Whether optree's registry knows ``cls`` in ``namespace`` (``""`` is the global one)."""
    return optree.register_pytree_node.get(cls, namespace=namespace) is not None


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


def mapping_key(name: str) -> KeyPath:
    """A key-path entry; ``torch.export`` refuses an attribute key with a dot, not a mapping key."""
    return torch_pytree.MappingKey(name)
