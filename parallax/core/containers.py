"""The containers in a module: how each is taken apart and put together, and the code for it.

They are tuples, named tuples, ``FrozenDict`` and classes that a user registered. A container has
children and *constants*: the keys of a dict, or what a registered class keeps beside its children.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import NODES

__all__ = ["built", "changed", "child_at", "is_named_tuple", "keys_of", "opened", "write_built",
           "write_opened"]  # fmt: skip


def is_named_tuple(cls: type) -> bool:
    """Whether a class is a named tuple's."""
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


def opened(tree: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The constants and the children of a container; ``None`` for anything else."""
    cls = type(tree)
    if cls in NODES:
        children, metadata = NODES[cls].flatten(tree)
        return (metadata,), tuple(children)
    if cls is FrozenDict:
        return (tuple(tree),), tuple(tree.values())
    return ((), tree) if cls is tuple or is_named_tuple(cls) else None


def built(cls: Any, constants: tuple[Any, ...], children: Sequence[Any]) -> Any:
    """The container with these constants and children."""
    if cls in NODES:
        return NODES[cls].unflatten(constants[0], tuple(children))
    if cls is FrozenDict:
        return FrozenDict(zip(constants[0], children, strict=True))
    return tuple(children) if cls is tuple else cls(*children)


def keys_of(cls: Any, constants: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """The key of each child: a dict key, a name or an index."""
    if cls is FrozenDict:
        return constants[0]  # type: ignore[no-any-return]  # a tuple of keys
    return tuple(range(count)) if cls in NODES or cls is tuple else cls._fields


def child_at(container: Any, key: Any) -> Any:
    """The child at a key."""
    if type(container) in NODES:
        return tuple(NODES[type(container)].flatten(container)[0])[key]
    return container[key] if type(container) in (tuple, FrozenDict) else getattr(container, key)


def changed(container: Any, children: dict[Any, Any]) -> Any:
    """The same container with other children at some keys."""
    found = opened(container)
    assert found is not None
    constants, old = found
    keys = keys_of(type(container), constants, len(old))
    pairs = zip(keys, old, strict=True)
    return built(type(container), constants, [children.get(key, child) for key, child in pairs])


def write_built(cls: type, bound: Callable[[Any], str], constant: str, children: str) -> str:
    """An expression for ``built``, of expressions for its first constant and its children.

    ``bound`` gives a name in the generated code to an object. Each child has a comma after it; some
    may be starred.
    """
    if cls in NODES:
        return f"{bound(NODES[cls].unflatten)}({constant}, ({children}))"
    if cls is FrozenDict:
        return f"{bound(FrozenDict)}(zip({constant}, ({children})))"
    return f"({children})" if cls is tuple else f"{bound(cls)}({children})"


def write_opened(cls: type, bound: Callable[[Any], str], container: str) -> str:
    """An expression for the tuple of the children of a container."""
    if cls in NODES:
        return f"tuple({bound(NODES[cls].flatten)}({container})[0])"
    return f"tuple({container}.values())" if cls is FrozenDict else container
