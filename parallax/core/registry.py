"""Registers module classes, and users' own classes, with both pytree registries.

- **optree**, global namespace: one node per module, attribute entries. Raw optree sees the nested
  tree, and a tied leaf in each of its places.
- **torch.utils._pytree**: a whole module is *one* node, whose children are its unique, present
  leaves, and last the key it holds as rng. So raw ``torch.func`` sees a tied leaf once, accepts
  ``bias=None``, vmaps and traces keys, and torch's Python traversal walks one node instead of
  hundreds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import optree

from parallax._compat import registries
from parallax._errors.arguments import check_function, shown
from parallax.core.layout import Layout
from parallax.core.module_structure import flatten_module, spec_of, unflatten_module
from parallax.core.nodes import NODES, Node, is_node
from parallax.core.optree_nodes import optree_functions
from parallax.core.structure import Structure

__all__ = ["NAMESPACE", "flatten_module", "register", "unflatten_module"]

NAMESPACE = "parallax"
"""optree's namespace for Parallax's own traversals: dicts keep their insertion order in it."""

# Kept for ever: when the context manager is collected, the order is reset.
_insertion_ordered = optree.dict_insertion_ordered(True, namespace=NAMESPACE)
_insertion_ordered.__enter__()


# -- torch ------------------------------------------------------------------------------------


@dataclass(slots=True, repr=False, unsafe_hash=True)
class Context:
    """The context of a module in torch's registry: everything but its present leaves."""

    structure: Structure
    present: tuple[int, ...] | None  # the indices of the leaves that are there; None for all
    rng: Any = field(compare=False)  # what the module holds as rng
    keyed: bool  # whether the last child is the key of that

    def __repr__(self) -> str:
        return repr(self.structure)


def _torch_flatten(module: Any) -> tuple[list[Any], Any]:
    leaves, structure = flatten_module(module)
    present = [leaf for leaf in leaves if leaf is not None]
    indices = None
    if len(present) != len(leaves):
        indices = tuple(k for k, leaf in enumerate(leaves) if leaf is not None)
    rng = module._rng
    key = None if rng is None else rng.key
    if key is not None:
        present.append(key)
    return present, Context(structure, indices, rng, key is not None)


def _torch_unflatten(children: Iterable[Any], context: Any) -> Any:
    structure: Structure = context.structure
    rng = context.rng
    if context.keyed:
        *children, key = children
        if rng is None:  # the context was loaded from a file
            from parallax.random.sources import KeySource

            rng = KeySource(key)
        else:
            rng = rng.with_key(key)
    if context.present is None:
        return unflatten_module(structure, children, rng)
    leaves: list[Any] = [None] * structure.n_leaves
    for index, leaf in zip(context.present, children, strict=True):
        leaves[index] = leaf
    return unflatten_module(structure, leaves, rng)


def _torch_flatten_with_keys(module: Any) -> tuple[list[tuple[Any, Any]], Any]:
    leaves, context = _torch_flatten(module)
    paths = spec_of(module).paths
    if context.present is not None:
        paths = tuple(paths[k] for k in context.present)
    keys = [registries.mapping_key(path) for path in (*paths, *("rng",) * context.keyed)]
    return list(zip(keys, leaves, strict=True)), context


def _dump_context(context: Context) -> str:
    present, keyed = context.present, context.keyed
    structure = _encoding().dump(context.structure)
    return json.dumps({"structure": structure, "present": present, "keyed": keyed})


def _load_context(text: str) -> Context:
    data = json.loads(text)
    present = data["present"]
    present = None if present is None else tuple(present)
    return Context(_encoding().load(data["structure"]), present, None, data["keyed"])


def _encoding() -> Any:
    from parallax.tree import encoding  # when torch writes or reads an archive

    return encoding


# -- both ---------------------------------------------------------------------------------------


def register_module(
    layout: Layout, cls: type | None = None, what: str = "", built: type | None = None
) -> None:
    """Registers a module class with both registries, or with none when that fails.

    It is the class of the layout; or ``cls`` below it, whose name ``what`` distinguishes. optree
    builds instances of ``built``, by default of the class of the layout.
    """
    cls = cls or layout.cls
    flatten, unflatten = optree_functions(layout, built or layout.cls)
    with _both(cls, flatten, unflatten, optree.GetAttrEntry):
        registries.register_torch_node(
            cls,
            _torch_flatten,
            _torch_unflatten,
            _torch_flatten_with_keys,
            name=f"{cls.__module__}.{cls.__qualname__}{f' ({what})' if what else ''}",
            dump_context=_dump_context,
            load_context=_load_context,
        )


@contextlib.contextmanager
def _both(cls: type, flatten: Any, unflatten: Any, entry: type) -> Iterator[None]:
    """Registers with optree, and takes that back when the registration inside fails."""
    registries.register_optree_node(cls, flatten, unflatten, entry=entry)
    try:
        yield
    except BaseException:
        registries.unregister_optree_node(cls)
        raise


def register(
    cls: type,
    flatten: Callable[[Any], tuple[Iterable[Any], Any]],
    unflatten: Callable[[Any, Any], Any],
    *,
    name: str | None = None,
) -> None:
    """Makes a class a node of trees, in Parallax, optree and torch.

    Args:
        cls: the class. Lookup is by exact type; subclasses register themselves.
        flatten: takes an instance to ``(children, metadata)``; the metadata must hash.
        unflatten: takes ``(metadata, children)`` to an instance.
        name: a stable name for serialisation; by default the module and qualified name.

    Raises:
        TypeError: if ``cls`` is not a class, another argument not a function, or ``name`` not a
            string.
        ValueError: if either registry knows the class already; then nothing is changed.

    Example:
        >>> import torch
        >>> from parallax import registry, tree
        >>> class Pair:
        ...     def __init__(self, a, b):
        ...         self.a, self.b = a, b
        >>> registry.register(Pair, lambda p: ((p.a, p.b), None), lambda _, ab: Pair(*ab))
        >>> tree.map(lambda x: x + 1, Pair(torch.zeros(()), torch.ones(()))).b
        tensor(2.)
    """
    if not isinstance(cls, type):
        raise TypeError(
            f"register(cls) takes a class, got {shown(cls)}. Write register(Pair, ...), where Pair "
            f"is the class itself, not one of its instances"
        )
    call = f"register({cls.__name__}, flatten, unflatten)"
    check_function("register", flatten, call, "flatten")
    check_function("register", unflatten, call, "unflatten")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"register(name=): expected a string, got {shown(name)}. Leave it out")
    if is_node(cls) or registries.is_optree_node(cls) or registries.is_torch_node(cls):
        where = "optree" if registries.is_optree_node(cls) else "torch.utils._pytree"
        raise ValueError(
            f"{cls.__qualname__} is registered already, with {where}; nothing was changed. "
            f"Register a class once, where it is defined."
        )
    node = Node(flatten, unflatten)
    with _both(cls, flatten, unflatten, optree.AutoEntry):
        _register_with_torch(cls, node, name or f"{cls.__module__}.{cls.__qualname__}")
    NODES[cls] = node


def _register_with_torch(cls: type, node: Node, name: str) -> None:
    def flatten(value: Any) -> tuple[list[Any], Any]:
        children, metadata = node.flatten(value)
        return list(children), metadata

    def with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        children, metadata = flatten(value)
        return [(registries.mapping_key(str(k)), c) for k, c in enumerate(children)], metadata

    registries.register_torch_node(
        cls,
        flatten,
        lambda children, metadata: node.unflatten(metadata, tuple(children)),
        with_keys,
        name=name,
        dump_context=lambda metadata: json.dumps(_encoding().dump_constant(metadata)),
        load_context=lambda text: _encoding().load_constant(json.loads(text)),
    )
