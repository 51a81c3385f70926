"""Every private or version-dependent part of torch and optree that Parallax touches.

Nothing outside this file imports a name that starts with an underscore from torch. When a new
torch release moves something, this is the only file that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch.utils import _pytree as torch_pytree

# optree names its global namespace by an object of a mangled name only.
_OPTREE_GLOBAL: Any = vars(optree.registry)["__GLOBAL_NAMESPACE"]

Context = Any
KeyPath = Any

is_compiling: Callable[[], bool] = torch.compiler.is_dynamo_compiling
"""True while dynamo traces, which folds the call to a constant; a third of ``is_compiling``'s time.

Not true in a non-strict ``torch.export``, which runs Python as it is and wants the eager path."""


def is_torch_node(cls: type) -> bool:
    """Whether torch's own pytree registry knows ``cls``."""
    return cls in torch_pytree.SUPPORTED_NODES


def is_optree_node(cls: type, namespace: str = "") -> bool:
    """Whether optree's registry knows ``cls`` in ``namespace`` (``""`` is the global one)."""
    return optree.register_pytree_node.get(cls, namespace=namespace) is not None  # type: ignore[attr-defined]  # optree attaches `get` at run time


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


def transform_active() -> bool:
    """Whether a ``torch.func`` transform (vmap, grad, jvp, functionalize) is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None
