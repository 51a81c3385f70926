"""What a function returned: its tensors to be differentiated or mapped, and a tree around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax.core.nodes import is_module
from parallax.func.moving import Opened, filled, is_inexact, path_of
from parallax.tree import core

__all__ = ["Result", "Taking", "describe", "open_tensors", "with_aux"]


class Result(Opened):
    """A result, its floating and complex tensors chosen.

    Integer tensors and holes inside of modules are not differentiated and pass through. Outside
    of modules only floating and complex tensors and ``None`` may be returned.

    Attributes:
        others: the tensors that were not chosen.
    """

    __slots__ = ("_close", "_others", "others")

    def __init__(self, tree: Any, what: str) -> None:
        self.tree = tree
        if tree is None:
            raise TypeError(f"{what}: the function returned nothing. End it with: return ...")
        self.leaves, self._close = _unfold(tree)
        self.places, self._others = [], []
        for place, leaf in enumerate(self.leaves):
            if is_inexact(leaf):
                self.places.append(place)
            elif isinstance(leaf, Tensor) and _inside_module(tree):
                self._others.append(place)
            elif leaf is not None and not _inside_module(tree):
                raise TypeError(_not_a_result(tree, place, leaf, what))
        if not self.places:
            raise TypeError(f"{what}: the function returned no floating tensor to differentiate")
        self.values = [self.leaves[place] for place in self.places]
        self.others = [self.leaves[place] for place in self._others]

    def around(self, values: Sequence[Any]) -> Any:
        """The tree with other values for the tensors that are differentiated."""
        return self._close(filled(list(self.leaves), self.places, values))

    def alone(self, values: Sequence[Any]) -> Any:
        """A tree of the same structure that holds these values and holes everywhere else."""
        return self._close(filled([None] * len(self.leaves), self.places, values))

    def rebuilt(self, values: Sequence[Any], others: Sequence[Any]) -> Any:
        """The tree with other values for all of its tensors."""
        leaves = filled(list(self.leaves), self._others, others)
        return self._close(filled(leaves, self.places, values))


class Taking:
    """Takes what a function returned to its floating tensors, and keeps what they came from.

    Attributes:
        result: what the function returned last.
    """

    __slots__ = ("has_aux", "result", "what")

    result: Result

    def __init__(self, what: str, has_aux: bool) -> None:
        self.what = what
        self.has_aux = has_aux

    def __call__(self, returned: Any) -> tuple[list[Tensor], Any]:
        """The floating tensors; and the others, with what came beside."""
        result, aux = with_aux(returned, self.what, self.has_aux)
        self.result = Result(result, self.what)
        return self.result.values, (self.result.others, aux)


def with_aux(returned: Any, what: str, has_aux: bool) -> tuple[Any, Any]:
    """The result of a function and what it returned beside it."""
    if not has_aux:
        return returned, None
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"{what}: with has_aux=True the function returns a pair (result, aux), "
            f"got {describe(returned)}"
        )
    return returned


def describe(value: Any) -> str:
    """A returned value in a few words, for error messages."""
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"


def _inside_module(tree: Any) -> bool:
    return not isinstance(tree, Tensor) and any(
        [is_module(t) for _, t in core.items_with_paths(tree)]
    )


def _not_a_result(tree: Any, place: int, leaf: Any, what: str) -> str:
    path = path_of(tree, place)
    where = f"at {path} of its result" if path else "as its result"
    kind = f"a {leaf.dtype} tensor" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
    return (
        f"{what}: the function returned {kind} {where}, which cannot be differentiated. "
        f"Return floating tensors, and everything else beside them: has_aux=True, return out, aux"
    )


def _unfold(tree: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
    """All leaves of a tree, also of trees in the place of leaves, as a Hessian has."""
    if isinstance(tree, Tensor):
        return [tree], _first
    leaves, spec = core.flatten(tree)
    if all([leaf is None or isinstance(leaf, Tensor) or not _is_tree(leaf) for leaf in leaves]):
        return leaves, lambda values: core.unflatten(spec, values)
    inner = [_unfold(leaf) if _is_tree(leaf) else ([leaf], _first) for leaf in leaves]

    def close(values: Sequence[Any]) -> Any:
        out, start = [], 0
        for below, close_below in inner:
            out.append(close_below(values[start : start + len(below)]))
            start += len(below)
        return core.unflatten(spec, out)

    return [leaf for below, _ in inner for leaf in below], close


def _is_tree(leaf: Any) -> bool:
    return is_module(leaf) or isinstance(leaf, (tuple, list, dict))


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def open_tensors(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Any]], Any]]:
    """The tensors in a tree of anything, and how to build it around others in their place."""
    if tree is None:
        return [], _nothing
    if isinstance(tree, Tensor):
        return [tree], _first
    leaves, close = _unfold(tree)
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuild(tensors: Sequence[Any]) -> Any:
        values = list(leaves)
        same = True
        for place, tensor in zip(places, tensors):  # noqa: B905  # dynamo traces no strict=
            same = same and values[place] is tensor
            values[place] = tensor
        return tree if same else close(values)

    return [leaves[k] for k in places], rebuild


def _nothing(values: Sequence[Any]) -> None:
    del values
