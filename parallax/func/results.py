"""What a function returned: its tensors to be differentiated or mapped, and a tree around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax.func.differentiated import Opened, filled, is_inexact
from parallax.func.unfolding import Unfolded
from parallax.tree import core

__all__ = ["Result", "Taking", "describe", "open_tensors", "with_aux"]


class Result(Opened):
    """A result, its floating and complex tensors chosen.

    Integer tensors and holes inside of modules are not differentiated and pass through. Outside
    of modules only floating and complex tensors and ``None`` may be returned.

    Attributes:
        others: the tensors that were not chosen.
    """

    __slots__ = ("_others", "_unfolded", "others")

    def __init__(self, tree: Any, what: str) -> None:
        self.tree = tree
        if tree is None:
            raise TypeError(f"{what}: the function returned nothing. End it with: return ...")
        self._unfolded = Unfolded(tree, what)
        self.leaves = self._unfolded.leaves
        self.places, self._others = [], []
        for place, leaf in enumerate(self.leaves):
            if is_inexact(leaf):
                self.places.append(place)
            elif isinstance(leaf, Tensor) and _inside_module(tree):
                self._others.append(place)
            elif leaf is not None and not _inside_module(tree):
                raise TypeError(_not_a_result(self._unfolded.path(place), leaf, what))
        if not self.places:
            raise TypeError(f"{what}: the function returned no floating tensor to differentiate")
        self.values = [self.leaves[place] for place in self.places]
        self.others = [self.leaves[place] for place in self._others]

    def around(self, values: Sequence[Any]) -> Any:
        """The tree with other values for the tensors that are differentiated."""
        return self._unfolded.close(filled(list(self.leaves), self.places, values))

    def alone(self, values: Sequence[Any]) -> Any:
        """A tree of the same structure that holds these values and holes everywhere else."""
        return self._unfolded.close(filled([None] * len(self.leaves), self.places, values))

    def row(self, other: Any) -> Sequence[Any]:
        """What another tree has in the place of each leaf."""
        return [other] if isinstance(self.tree, Tensor) else self._unfolded.beside(other)

    def rebuilt(self, values: Sequence[Any], others: Sequence[Any]) -> Any:
        """The tree with other values for all of its tensors."""
        leaves = filled(list(self.leaves), self._others, others)
        return self._unfolded.close(filled(leaves, self.places, values))


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
            f"got {describe(returned)}. Return two things, or leave has_aux=False"
        )
    return returned


def describe(value: Any) -> str:
    """A returned value in a few words, for error messages."""
    if value is None:
        return "nothing"
    if type(value) is tuple:
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"


def _inside_module(tree: Any) -> bool:
    return not isinstance(tree, Tensor) and any(
        [part is not None for part in core.structure(tree).parts]
    )


def _not_a_result(path: str, leaf: Any, what: str) -> str:
    where = f"at {path} of its result" if path else "as its result"
    kind = f"a {leaf.dtype} tensor" if isinstance(leaf, Tensor) else f"a {type(leaf).__name__}"
    return (
        f"{what}: the function returned {kind} {where}, which cannot be differentiated. "
        f"Return floating tensors, and everything else beside them: has_aux=True, return out, aux"
    )


def open_tensors(tree: Any, what: str) -> tuple[list[Tensor], Callable[[Sequence[Any]], Any]]:
    """The tensors in a tree of anything, and how to build it around others in their place.

    Args:
        tree: what a function returned.
        what: what was called, for error messages.

    Raises:
        TypeError: if it holds tensors that cannot be taken out.
    """
    if tree is None:
        return [], _nothing
    if isinstance(tree, Tensor):
        return [tree], _first
    unfolded = Unfolded(tree, what)
    leaves = unfolded.leaves
    places = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def rebuild(tensors: Sequence[Any]) -> Any:
        values = list(leaves)
        same = True
        for place, tensor in zip(places, tensors, strict=True):
            same = same and values[place] is tensor
            values[place] = tensor
        return tree if same else unfolded.close(values)

    return [leaves[k] for k in places], rebuild


def _first(values: Sequence[Any]) -> Any:
    return values[0]


def _nothing(values: Sequence[Any]) -> None:
    del values
