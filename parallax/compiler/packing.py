"""Arguments and results as flat lists, which compiled code takes and returns.

``pack`` runs in eager, once per call: it takes the arguments apart into *items* and *tokens*.
The tokens, in preorder, say what the items were taken from; they are the key of a graph.
``build`` puts a tree together from tokens and items: around real leaves in eager, around traced
ones while dynamo traces. ``spell`` is ``pack`` for the results, while dynamo traces.

An item is a tensor or whatever else is no container that is opened here: numbers, strings, objects
of other libraries. Those are handed through; dynamo looks at them as it looks at any argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from parallax.core.constants import constant_key
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import NODES
from parallax.core.registry import flatten_module, unflatten_module
from parallax.core.structure import Structure
from parallax.tree.calls import CALLS, attributes_of, bound

__all__ = [
    "ITEM", "Items", "Same", "build", "build_call", "pack", "pack_call", "paths_of", "placed",
    "positions_in_modules", "spans", "spell",
]  # fmt: skip

ITEM = "item"
RNG = "rng"  # before a module's token: the rng it holds is an item, ahead of its leaves


class Same:
    """The class of a list or dict of a result that was met before; its number follows."""


# -- eager ------------------------------------------------------------------------------------


def pack_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """The items and tokens of the arguments of a call."""
    items: list[Any] = []
    tokens: list[Any] = [len(args), tuple(kwargs)]
    for value in args:
        pack(value, items, tokens)
    for value in kwargs.values():
        pack(value, items, tokens)
    return items, tuple(tokens)


def pack(value: Any, items: list[Any], tokens: list[Any]) -> None:
    """Takes one value apart, appending to ``items`` and ``tokens``."""
    cls: Any = type(value)
    if cls is Tensor:
        items.append(value)
        tokens.append(ITEM)
    elif hasattr(cls, "__layout__"):
        leaves, structure = flatten_module(value)
        if value._rng is not None:
            items.append(value._rng)
            tokens.append(RNG)
        items.extend(leaves)
        tokens.append(structure)
    elif cls is tuple or cls is list or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        tokens.append((cls, len(value)))
        for item in value:
            pack(item, items, tokens)
    elif cls is dict or cls is FrozenDict:
        keys = tuple(value)
        tokens.append((cls, keys, tuple(map(type, keys))))  # 1 and True are equal
        for item in value.values():
            pack(item, items, tokens)
    elif cls in NODES:
        children, metadata = NODES[cls].flatten(value)
        parts = tuple(children)
        tokens.append((cls, len(parts), constant_key(metadata, cls.__name__), metadata))
        for part in parts:
            pack(part, items, tokens)
    elif cls in CALLS and _is_opened(value):
        tokens.append(_call_token(value))
        for name in tokens[-1][1]:
            pack(getattr(value, name), items, tokens)
    else:
        items.append(value)
        tokens.append(ITEM)


def _is_opened(call: Any) -> bool:
    """Whether a method or partial is taken apart; others are items that dynamo looks at."""
    if type(call) is MethodType:
        return hasattr(type(call.__self__), "__layout__") or type(call.__self__) in NODES
    return attributes_of(call) is None


def _call_token(call: Any) -> tuple[Any, ...]:
    """The token of a method or partial, in which the second names the parts that follow.

    The function of a method belongs to a class. That of a partial may be written anew for each
    call, so it is an item, of which dynamo guards what it has to.
    """
    if type(call) is MethodType:
        return bound, ("__self__",), call.__func__
    return partial, ("func", "args", "keywords")


def paths_of(tokens: tuple[Any, ...], names: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Where the items of a call and its modules are, for messages.

    Args:
        tokens: those of the call.
        names: of its positional arguments, as far as they are known.

    Returns:
        A path per item, and the structure of each module by its path.
    """
    n_args, keywords, *rest = tokens
    names = [*names[:n_args], *[f"args.{k}" for k in range(len(names), n_args)], *keywords]
    paths: list[str] = []
    modules: dict[str, Any] = {}
    left = iter(rest)
    for name in names:
        _paths(left, name, paths, modules)
    return paths, modules


def placed(tokens: Iterable[Any]) -> Iterator[tuple[Any, int]]:
    """The tokens that stand for items, each with the position of its first item."""
    position = 0
    for token in tokens:
        if type(token) is Structure:
            yield token, position
            position += len(token.first)
        elif token is ITEM or token is RNG:
            yield token, position
            position += 1


def positions_in_modules(tokens: tuple[Any, ...]) -> set[int]:
    """The positions of the items that are leaves of modules."""
    found = [(token, start) for token, start in placed(tokens[2:]) if type(token) is Structure]
    return {start + k for token, start in found for k in range(len(token.first))}


def spans(tokens: Sequence[Any]) -> list[range]:
    """The positions of the items of each argument of a call."""
    found, left, position = [], iter(tokens[2:]), 0
    for _ in range(tokens[0] + len(tokens[1])):
        start = position
        position += _count(left)
        found.append(range(start, position))
    return found


def _count(tokens: Iterator[Any]) -> int:
    """How many items the next value has."""
    token = next(tokens)
    if token is RNG:
        return 1 + _count(tokens)
    if token is ITEM:
        return 1
    if type(token) is Structure:
        return len(token.first)
    parts = token[1] if type(token[1]) is int else len(token[1])
    return sum([_count(tokens) for _ in range(parts)])


def _paths(tokens: Iterator[Any], path: str, paths: list[str], modules: dict[str, Any]) -> None:
    token = next(tokens)
    if token is RNG:
        paths.append(f"{path}'s rng")
        token = next(tokens)
    if token is ITEM:
        paths.append(path)
    elif type(token) is Structure:
        modules[path] = token
        paths += [f"{path}.{inner}" for inner in token.paths]
    else:
        cls, keys = token[:2]
        if type(keys) is int:
            keys = getattr(cls, "_fields", None) or range(keys)
        for key in keys:
            _paths(tokens, f"{path}.{key}", paths, modules)


# -- eager and traced -------------------------------------------------------------------------


def build_call(tokens: Any, items: Any) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call: the inverse of ``pack_call``."""
    left, given = iter(tokens), Items(items)
    n_args, keywords = next(left), next(left)
    args = [build(left, given) for _ in range(n_args)]
    return args, {name: build(left, given) for name in keywords}


class Items:
    """Items that are taken from the front; a trace takes many at once, which no iterator allows."""

    __slots__ = ("_items", "_start")

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items
        self._start = 0

    def take(self, count: int) -> Sequence[Any]:
        """The next ones."""
        start = self._start
        self._start = start + count
        return self._items[start : start + count]


def build(tokens: Iterator[Any], items: Items, met: list[Any] | None = None) -> Any:
    """The next value of ``tokens``, from the next ``items``; ``met`` are lists and dicts so far."""
    token = next(tokens)
    if token is ITEM:
        return items.take(1)[0]
    rng = None
    if token is RNG:
        rng = items.take(1)[0]
        token = next(tokens)
    if type(token) is Structure:
        return unflatten_module(token, items.take(len(token.first)), rng)
    if met is None:
        return _build_container(token, tokens, items, None)
    if token[0] is Same:
        return met[token[2]]
    number = len(met)
    met += [None] * (token[0] in (list, dict))
    found = _build_container(token, tokens, items, met)
    if token[0] in (list, dict):
        met[number] = found
    return found


def _build_container(token: Any, tokens: Iterator[Any], items: Items, met: list[Any] | None) -> Any:
    cls, keys = token[0], token[1]
    if cls is dict:
        return {key: build(tokens, items, met) for key in keys}
    if cls is FrozenDict:
        return FrozenDict({key: build(tokens, items, met) for key in keys})
    if cls is bound:
        return bound(token[2], build(tokens, items, met))
    if cls is partial:
        parts = [build(tokens, items, met) for _ in keys]
        return partial(parts[0], *parts[1], **parts[2])
    values = [build(tokens, items, met) for _ in range(keys)]
    if cls is list:
        return values
    if cls is tuple:
        return tuple(values)
    if cls in NODES:
        return NODES[cls].unflatten(token[3], tuple(values))
    return cls(*values)


# -- traced -----------------------------------------------------------------------------------


def spell(
    value: Any, items: list[Any], tokens: list[Any], met: list[Any], deep: bool = False
) -> None:
    """Takes one result apart under tracing, as ``pack``.

    A module made in the trace is an item, which dynamo makes anew itself: a constant of it may be
    known to dynamo alone. Where ``deep``, it is taken apart if its constants are numbers and texts.
    A list or dict that is among ``met`` is said to be that one; others are added.
    """
    cls: Any = type(value)
    if cls is list or cls is dict:
        for number, one in enumerate(met):
            if one is value:
                tokens.append((Same, 0, number))
                return
        met.append(value)
    if hasattr(cls, "__layout__") and (
        type(value._spec) is Structure or (deep and _is_describable(value))
    ):
        leaves, structure = flatten_module(value)
        if value._rng is not None:
            items.append(value._rng)
            tokens.append(RNG)
        items.extend(leaves)
        tokens.append(structure)
    elif cls is tuple or cls is list or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        tokens.append((cls, len(value)))
        for item in value:
            spell(item, items, tokens, met, deep)
    elif cls is dict:
        keys = tuple(value)
        tokens.append((cls, keys, tuple([type(key) for key in keys])))
        for item in value.values():
            spell(item, items, tokens, met, deep)
    elif cls in CALLS and _is_opened(value):
        token = _call_token(value)
        tokens.append(token)
        for name in token[1]:
            spell(getattr(value, name), items, tokens, met, deep)
    else:
        items.append(value)
        tokens.append(ITEM)


def _is_describable(value: Any) -> bool:
    """Whether what was made in a trace holds tensors, modules, numbers and texts only."""
    cls: Any = type(value)
    if hasattr(cls, "__layout__"):
        if type(value._spec) is Structure:
            return True
        layout: Any = cls.__layout__.itself()
        names = (*layout.children, *layout.constants)
        return all([_is_describable(getattr(value, name)) for name in names])
    if cls is dict or cls is FrozenDict:
        return all([_is_describable(item) for item in value.values()])
    if cls is tuple:
        return all([_is_describable(item) for item in value])
    return cls in _PLAIN


_PLAIN = (Tensor, torch.nn.Parameter, int, float, bool, str, type(None))
