"""Trees as lists of tensors, for loops and branches: taken apart, compared, put together.

Constants, holes and ties are the frame, which every step leaves as it is. The leaves and the keys
that modules hold are the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from parallax._compat import dynamo
from parallax.core.fields import Lazy, UninitializedError
from parallax.func.arguments import short
from parallax.func.differentiated import filled, path_of
from parallax.tree import core

__all__ = ["LONE", "Frame", "check_functions", "fitted", "framed"]


class Frame:
    """A tree without its tensors.

    Attributes:
        spec: the structure.
        places: which of its leaves are tensors; the others are holes.
        keyed: which of its outermost parts are modules that hold a key.
    """

    __slots__ = ("keyed", "places", "spec")

    def __init__(self, spec: core.TreeSpec, places: Sequence[int], keyed: Sequence[int]) -> None:
        self.spec = spec
        self.places = places
        self.keyed = keyed

    def build(self, tensors: Sequence[Any]) -> Any:
        """The tree around these tensors."""
        if self is LONE:
            return tensors[0]
        spec, count = self.spec, len(self.places)
        if self.keyed:
            rngs = list(spec.rngs)
            for place, key in zip(self.keyed, tensors[count:], strict=True):
                rngs[place] = rngs[place].with_key(key)
            spec = spec.with_rngs(rngs)
        leaves: list[Any] = [None] * spec.num_leaves
        return spec.build(filled(leaves, self.places, tensors[:count]))

    def is_like(self, other: Frame) -> bool:
        """Whether another frame is for the same tensors."""
        return (
            self.spec == other.spec
            and list(self.places) == list(other.places)
            and list(self.keyed) == list(other.keyed)
        )


LONE = Frame(core.LONE, (0,), ())
"""The frame of a tensor alone."""


class _Row(Frame):
    """A plain tuple of tensors, which is put together without its structure."""

    __slots__ = ()

    def build(self, tensors: Sequence[Any]) -> Any:
        """The tuple of these tensors."""
        return tuple(tensors)


_rows: dict[int, _Row] = {}


def _row(tree: tuple[Tensor, ...]) -> _Row:
    """The frame of a plain tuple of tensors, which depends on their number alone."""
    known = _rows.get(len(tree))
    if known is None:
        known = _rows[len(tree)] = _Row(core.opened(tree)[1], range(len(tree)), ())
    return known


def framed(tree: Any, what: str, role: str) -> tuple[list[Tensor], Frame]:
    """Takes a tree apart into its tensors and the rest.

    Args:
        tree: a module, or any pytree that holds modules and tensors.
        what: what is being called, for error messages.
        role: what the tree is there, for error messages.

    Raises:
        TypeError: if a leaf is neither a tensor nor a hole; the message names the path.
        UninitializedError: if a leaf has no value yet.
    """
    if isinstance(tree, Tensor):
        return [tree], LONE
    if type(tree) is tuple and not dynamo.is_compiling() and all([type(x) is Tensor for x in tree]):
        return list(tree), _row(tree)  # a usual case, with less
    leaves, spec = core.opened(tree)
    places = [place for place, leaf in enumerate(leaves) if leaf is not None]
    tensors = [leaves[place] for place in places]
    for place, leaf in zip(places, tensors, strict=True):
        if not isinstance(leaf, Tensor):
            raise _no_tensor(tree, place, leaf, what, role)
    keyed = [k for k, rng in enumerate(spec.rngs) if rng is not None and rng.key is not None]
    return [*tensors, *[spec.rngs[k].key for k in keyed]], Frame(spec, places, keyed)


def _no_tensor(tree: Any, place: int, leaf: Any, what: str, role: str) -> Exception:
    path = path_of(tree, place)
    where = f"{what}: {role}{f': {path}' if path else ''}"
    if isinstance(leaf, Lazy):
        return UninitializedError(
            f"{where} is not initialized. Initialize first: module = module.initialize(rng)"
        )
    return TypeError(
        f"{where} is {short(leaf)}, and only tensors and None go through. Write a tensor: "
        f"torch.tensor(1.0); or use it in the function without passing it"
    )


def fitted(
    tree: Any, first: Any, tensors: Sequence[Tensor], frame: Frame, what: str, role: str
) -> list[Tensor]:
    """The tensors of a tree that must be what the first one was: structure, shapes and dtypes.

    Raises:
        ValueError: if it is not; the message names the path.
    """
    if frame is LONE and type(tree) is Tensor:  # the usual case, with less
        if tree.shape == tensors[0].shape and tree.dtype is tensors[0].dtype:
            return [tree]
        found = [tree]
    else:
        found, own = framed(tree, what, role)
        if not frame.is_like(own):
            raise _other_structure(tree, first, what, role)
    for place, (mine, given) in enumerate(zip(found, tensors, strict=True)):
        if mine.shape != given.shape or mine.dtype is not given.dtype:
            raise _other_tensor(first, frame, place, (mine, given), what, role)
    return found


def _other_structure(tree: Any, first: Any, what: str, role: str) -> ValueError:
    try:
        core.columns(first, (tree,))
        differ = "modes, frozen marks, holes or keys of modules differ"
    except (TypeError, ValueError) as error:
        differ = str(error)
    return ValueError(
        f"{what}: {role} has another structure than the first: {differ}. "
        f"Return a {_named(first)} as it was given"
    )


def _named(tree: Any) -> str:
    return "tree" if tree is None else type(tree).__name__


def _other_tensor(
    first: Any, frame: Frame, place: int, pair: tuple[Tensor, Tensor], what: str, role: str
) -> ValueError:
    path = path_of(first, frame.places[place]) if place < len(frame.places) else "a key"
    (mine, given), named = pair, f": {path}" if path else ""
    hint = "Keep the shape from the start: init = torch.zeros(shape)"
    if mine.dtype is not given.dtype:
        hint = f"Cast it: .to({given.dtype}); or give {mine.dtype} from the start"
    return ValueError(
        f"{what}: {role}{named} has shape {tuple(mine.shape)} and dtype {mine.dtype}, and was "
        f"{tuple(given.shape)} and {given.dtype} before. {hint}"
    )


def check_functions(what: str, **functions: Any) -> None:
    """Raises a ``TypeError`` unless each is a function."""
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"{what}: {name} must be a function, got {short(function)}. "
                f"Write {name}=f, where f is the function itself, not f(x)"
            )
