"""What stands around the modules of a pytree: dicts, lists and other containers."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any

import optree
import torch
from torch import Tensor

from parallax._compat import dynamo, registries
from parallax._compat.opaque import constant_while_tracing, real
from parallax.core.code import function_of
from parallax.core.frozendict import FrozenDict
from parallax.core.nodes import NODES, is_module
from parallax.core.registry import NAMESPACE
from parallax.tree.align import misfit
from parallax.tree.calls import CALLS

__all__ = ["Outside", "adopt", "close", "is_item", "is_leaf", "is_plain", "item_paths", "join",
           "opened_outside", "up_to"]  # fmt: skip

_PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, Tensor, torch.nn.Parameter,
})  # fmt: skip


def is_plain(item: Any) -> bool:
    """Whether an item is a leaf by its class: a tensor, a number, a string and the like."""
    return type(item) in _PLAIN or isinstance(item, Tensor)


def is_item(tree: Any) -> bool:
    """Whether the outside of a tree ends here by more than its class: at a module, or at a method.

    A method of a module, or of what else is a tree, is a container of it. One of any other object
    is a leaf, like a function.
    """
    cls = type(tree)
    if cls is MethodType:
        return not is_module(tree.__self__) and is_leaf(tree.__self__)
    return hasattr(cls, "__layout__")  # ``is_module`` without a call, for each node of a tree


def adopt(children: Iterable[Any]) -> bool:
    """Makes the classes of leaves nodes that torch's pytree takes apart, and optree does not yet.

    So a TensorDict, or the output of a transformers model, is a tree here as it is for
    ``torch.func``. Only Parallax's own traversals see it.

    Returns:
        Whether any is a node now.
    """
    kinds = {type(child) for child in children} - _PLAIN
    if not kinds:
        return False
    traced = dynamo.is_compiling()
    return any([_adopt(cls, traced) for cls in kinds if not hasattr(cls, "__layout__")])


@dynamo.constant_in_traces
def _adopt(cls: type, traced: bool) -> bool:
    adopted = registries.adopt_torch_node(cls, NAMESPACE)
    if adopted and traced:  # which has read optree's registry as it was
        dynamo.restart_trace(f"{cls.__name__} became a node of optree's")
    return adopted


@constant_while_tracing
class Outside:
    """What stands around the modules of a tree: optree's spec, as a constant of a trace."""

    __slots__ = ("spec",)

    def __init__(self, outer: Any) -> None:
        self.spec = outer

    def dotted(self) -> tuple[str, ...]:
        """The dotted paths of the outermost modules and leaves."""
        return tuple(_dotted(self.spec))

    def build(self) -> Callable[[Sequence[Any]], Any]:
        """A function that builds the containers around items, for dynamo to trace."""
        names: dict[str, Any] = {}
        body = _display(self.spec, iter(range(self.spec.num_leaves)), names)
        return function_of("build(items)", [f"return {body}"], names)  # type: ignore[no-any-return]  # it is one

    def __eq__(self, other: object) -> bool:
        return type(other) is Outside and bool(self.spec == other.spec)

    def __hash__(self) -> int:
        return hash(self.spec)

    def __repr__(self) -> str:
        return repr(self.spec)


def _dotted(outer: Any) -> list[str]:
    return [".".join([str(entry) for entry in entries]) for entries in outer.paths()]


def _display(spec: Any, places: Iterator[int], names: dict[str, Any]) -> str:
    """An expression for the containers of a spec; what is no literal is among ``names``."""

    def bound(value: Any) -> str:
        name = f"parallax_{len(names)}"
        names[name] = value
        return name

    if spec.is_leaf():
        return f"items[{next(places)}]"
    cls, below = spec.type, spec.children()
    parts = [_display(child, places, names) for child in below]
    inner = "".join(f"{part}, " for part in parts)
    if cls in (tuple, list):
        return f"({inner})" if cls is tuple else f"[{inner}]"
    if cls in NODES or cls is FrozenDict or issubclass(cls, (dict, deque)):
        like = spec.one_level().unflatten([None] * len(parts))  # has all but the items
        if cls in NODES:
            metadata = NODES[cls].flatten(like)[1]
            return f"{bound(NODES[cls].unflatten)}({bound(metadata)}, ({inner}))"
        if cls is deque:
            return f"{bound(deque)}(({inner}), {like.maxlen!r})"
        entries = zip(spec.entries(), parts, strict=True)
        pairs = "".join(f"{bound(key)}: {part}, " for key, part in entries)
        if cls is dict:
            return f"{{{pairs}}}"
        first = f"{bound(like.default_factory)}, " if cls is defaultdict else ""
        return f"{bound(cls)}({first}{{{pairs}}})"
    if hasattr(cls, "_fields"):
        return f"{bound(cls)}({inner})"
    raise TypeError(
        f"a {cls.__name__} cannot be built in compiled code by a structure that was made outside; "
        f"make the structure inside: tree.structure(tree)"
    )


def opened_outside(tree: Any) -> tuple[list[Any], Any]:
    """The outermost modules and leaves of a tree, and what stands around them.

    That is an ``Outside``; in a trace it is a spec of dynamo's own form of optree where there are
    containers that ``_taken_apart`` does not know.
    """
    if dynamo.is_compiling():
        children: list[Any] = []
        outer: Any = _outside(_taken_apart(tree, children))
        if outer is not None:
            return children, outer
    children, outer = optree.tree_flatten(
        tree, is_leaf=is_item, none_is_leaf=True, namespace=NAMESPACE
    )
    if adopt(children):
        return opened_outside(tree)
    return children, outer if dynamo.is_compiling() else Outside(outer)


def _taken_apart(tree: Any, children: list[Any]) -> Any:
    """Appends the outermost modules and leaves of a tree to ``children``, for dynamo to trace.

    Dynamo's form of optree takes ten times as long for a dict of tensors.

    Returns:
        ``None`` for a module or leaf, ``(class, keys, what is below each)`` for the containers that
        are known here, ``...`` for others.
    """
    cls = type(tree)
    keys: tuple[Any, ...] = ()
    if cls is dict or cls is OrderedDict or cls is FrozenDict:
        keys, below = tuple(tree), tuple(tree.values())
        if not all([type(key) in _PLAIN for key in keys]):  # others may be no constants to dynamo
            return ...
    elif cls is tuple or cls is list or (issubclass(cls, tuple) and hasattr(cls, "_fields")):
        below = tree
    elif cls in _PLAIN or is_module(tree) or _is_leaf_class(cls):
        children.append(tree)
        return None
    else:
        return ...
    if all([type(child) is Tensor for child in below]):  # the usual case, with less
        children += below
        return cls, keys, (None,) * len(below)
    return cls, keys, tuple([_taken_apart(child, children) for child in below])


@real
def _is_leaf_class(cls: type) -> bool:
    """Whether no registry takes instances of a class apart."""
    known = registries.is_optree_node(cls, NAMESPACE) or registries.is_torch_node(cls)
    return not known and not optree.is_structseq_class(cls)


@real
def _outside(outer: Any) -> Outside | None:
    """What ``_taken_apart`` tells of; ``None`` if something in it is not known."""
    try:
        tree = _emptied(outer)
    except LookupError:
        return None
    return Outside(optree.tree_structure(tree, none_is_leaf=True, namespace=NAMESPACE))


def _emptied(outer: Any) -> Any:
    """The containers with ``None`` for each module and leaf."""
    if outer is None:
        return None
    if outer is ...:
        raise LookupError
    cls, keys, children = outer
    below = [_emptied(child) for child in children]
    if cls in (dict, OrderedDict, FrozenDict):
        return cls(zip(keys, below, strict=True))
    return cls(*below) if hasattr(cls, "_fields") else cls(below)


def close(outer: Any, children: Sequence[Any]) -> Any:
    """The tree of other outermost modules and leaves."""
    if type(outer) is not Outside:
        return optree.tree_unflatten(outer, children)
    if dynamo.is_compiling():
        return outer.itself().build()(children)  # type: ignore[attr-defined]  # of every constant of a trace
    return optree.tree_unflatten(outer.spec, children)


def item_paths(outer: Any) -> list[str]:
    """The dotted paths of the outermost modules and leaves."""
    if outer is None:
        return [""]
    return list(outer.dotted()) if type(outer) is Outside else _dotted(outer)


def up_to(outer: Any, tree: Any, other: Any) -> list[Any]:
    """What ``other`` has in the place of each outermost module and leaf of ``tree``.

    Args:
        outer: what stands around the modules of ``tree``.
        tree: a pytree that holds modules.
        other: a pytree that should have its containers.

    Raises:
        ValueError: if it has others; the message names the first path.
    """
    if type(outer) is Outside and dynamo.is_compiling():
        children, theirs = opened_outside(other)
        if theirs == outer:
            return children
        order = _order(outer, theirs) if type(theirs) is Outside else None
        if order is None:
            raise ValueError(_outer_misfit(tree, other))
        return [children[place] for place in order]
    try:
        if type(outer) is Outside:
            return outer.spec.flatten_up_to(other)  # type: ignore[no-any-return]  # a list of subtrees
        return outer.flatten_up_to(other)  # type: ignore[no-any-return]  # as above
    except ValueError:
        raise ValueError(_outer_misfit(tree, other)) from None


@real
def _order(outer: Outside, other: Outside) -> tuple[int, ...] | None:
    """Where the items of a structure stand in another one, whose dicts may have another order."""
    places = optree.tree_unflatten(other.spec, range(other.spec.num_leaves))
    try:
        found = outer.spec.flatten_up_to(places)
    except ValueError:
        return None
    return tuple(found) if all([type(place) is int for place in found]) else None


def is_leaf(tree: Any) -> bool:
    """Whether there is nothing to take apart here."""
    if type(tree) in _PLAIN:
        return True
    if type(tree) in CALLS:
        return is_item(tree)
    lone = optree.tree_is_leaf(tree, none_is_leaf=True, namespace=NAMESPACE)
    return bool(lone) and not adopt((tree,))


def _outer_misfit(tree: Any, other: Any) -> str:
    """Says where two pytrees first differ outside of modules."""
    stack = [("", tree, other)]
    while stack:
        path, a, b = stack.pop()
        if is_module(a) or is_leaf(a):
            continue
        if type(a) is not type(b):
            return misfit(path, f"a {type(a).__name__}", f"a {type(b).__name__}")
        ours, theirs = (
            optree.tree_flatten_one_level(t, none_is_leaf=True, namespace=NAMESPACE) for t in (a, b)
        )
        if ours[1] != theirs[1] or ours[2] != theirs[2]:
            kind = type(a).__name__
            return misfit(path, f"a {kind} of {list(ours[2])}", f"a {kind} of {list(theirs[2])}")
        below = zip(ours[2], ours[0], theirs[0], strict=True)
        stack += reversed([(join(path, str(key)), c, d) for key, c, d in below])
    return misfit("", f"a {type(tree).__name__}", f"a {type(other).__name__}")


def join(prefix: str, path: str) -> str:
    """A dotted path below another; either may be empty."""
    return f"{prefix}.{path}" if prefix and path else prefix or path
