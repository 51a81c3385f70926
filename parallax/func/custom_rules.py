"""Functions whose derivative somebody has written: one call, its arguments, results and residuals.

``applied`` runs it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax._compat import dynamo
from parallax.core.module_structure import leaves_of, spec_of
from parallax.core.nodes import is_module
from parallax.core.registry import unflatten_module
from parallax.func.differentiated import is_inexact, path_of
from parallax.func.framed import LONE, Frame, framed
from parallax.func.reached import Reached, Watch
from parallax.func.results import describe
from parallax.tree import core

__all__ = ["DETACH", "Rule"]

Forward = Callable[..., tuple[Any, Any]]
Backward = Callable[..., Any]
Push = Callable[[Sequence[Tensor], Sequence[Tensor | None]], Sequence[Tensor | None]]


class Rule:
    """One call of a function that has a derivative of its own.

    Attributes:
        forward: takes the arguments to the result and what is kept.
        backward: takes what is kept and a cotangent to one for each argument.
        args: the arguments.
        what: what is called, for error messages.
        frames: of each argument the number of its tensors, and its frame.
        outs: the frame of the result, when it is known.
        kept: the frame of what is kept, when it is known.
        count: how many tensors the result is.
        sources: of each tensor that is kept, which tensor of the arguments it is, if any.
        push: the derivative in forward mode, if there is one.
        reached: the functions that its author wrote, and what they reach.
        watched: what the function reaches that is differentiated, before it is called.
        beside: how many tensors that are differentiated the derivative reaches.
    """

    __slots__ = (
        "args", "backward", "beside", "count", "forward", "frames", "kept", "outs", "push",
        "reached", "sources", "watched", "what",
    )  # fmt: skip

    frames: list[tuple[int, Frame | _Whole]]
    outs: Frame
    kept: Frame | _Row
    count: int
    sources: list[int | None]

    def __init__(
        self, forward: Forward, backward: Backward, args: Sequence[Any], what: str,
        push: Push | None = None, reached: Reached | None = None,
    ) -> None:  # fmt: skip
        self.forward = forward
        self.backward = backward
        self.args = args
        self.what = what
        self.push = push
        self.reached = reached
        self.watched: Sequence[Tensor] = ()
        self.beside = 0

    def open(self) -> Sequence[Tensor]:
        """The tensors of the arguments."""
        if all([type(arg) is Tensor for arg in self.args]):  # the usual case, with less
            self.frames = [_ONE] * len(self.args)
            return self.args
        tensors: list[Tensor] = []
        frames: list[tuple[int, Frame | _Whole]] = []
        traced = dynamo.is_compiling()
        for index, arg in enumerate(self.args):
            if type(arg) is Tensor:  # the usual cases, with less
                tensors.append(arg)
                frames.append(_ONE)
                continue
            whole = None if traced else _whole(arg)
            if whole is not None:
                tensors += whole.leaves
                frames.append((len(whole.leaves), whole))
                continue
            found, frame = framed(arg, self.what, f"argument {index}")
            tensors += found
            frames.append((len(found), frame))
        self.frames = frames
        return tensors

    def around(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        """The arguments around other tensors, or holes."""
        return _built(self.frames, tensors)

    def run(
        self, args: Sequence[Any], tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of the result, and of what is kept.

        Args:
            args: the arguments.
            tensors: those in the arguments.
        """
        if self.watched:
            return self._run_watched(args, tensors)
        return self.taken(self.forward(*args), args, tensors)

    def taken(
        self, found: Any, args: Sequence[Any], tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As ``run``, of what the function returned."""
        if type(found) is not tuple or len(found) != 2:
            raise TypeError(
                f"{self.what}: fwd returns a pair (result, residuals), got {describe(found)}. "
                f"Return two things: return out, (x, y); or return out, None"
            )
        outs, self.outs = framed(found[0], self.what, "the result")
        self.count = len(outs)
        if type(found[1]) is tuple and not dynamo.is_compiling():
            return outs, self._open_row(found[1], args, tensors)
        kept, self.kept = framed(found[1], self.what, "the residuals")
        return outs, kept

    def _run_watched(
        self, args: Sequence[Any], tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As ``run``; raises if the result is computed of what is reached and differentiated."""
        watched, self.watched = self.watched, ()
        with Watch(watched) as watch:
            found = self.run(args, tensors)
        if any(map(watch.knows, found[0])):
            raise TypeError(self.refusal("differentiated", DETACH))
        return found

    def refusal(self, how: str, otherwise: str = "") -> str:
        """The text of the error for a function that uses more than its arguments.

        Args:
            how: what is done to what it captures.
            otherwise: what else to write.
        """
        of = self.what.partition("(")[2].removesuffix(")")
        return (
            f"{self.what}: {of} captures a tensor that is {how}, and its rule is about the "
            f"arguments alone. Pass it, a model as well, and give it a derivative in the rule: "
            f"f(x, model){otherwise}"
        )

    def backward_only(self) -> str:
        """The text of the error for a rule that is asked for a derivative in forward mode."""
        if self.push is not None:
            return (
                f"{self.what}: a custom derivative has no forward mode in compiled code. Use "
                f"func.grad, func.vjp or func.jacrev there; or take the jvp outside of it"
            )
        return (
            f"{self.what}: it has no derivative in forward mode. Write its rule with "
            f"func.custom_jvp, which has both; or use func.grad, func.vjp, func.jacrev"
        )

    def _open_row(
        self, residuals: tuple[Any, ...], args: Sequence[Any], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        """The tensors of what is kept; an argument in it is not taken apart again."""
        kept: list[Tensor] = []
        frames: list[tuple[int, Frame | _Given | _Whole]] = []
        for index, item in enumerate(residuals):
            if type(item) is Tensor:
                kept.append(item)
                frames.append(_ONE)
                continue
            start = 0
            for arg, (count, frame) in zip(args, self.frames, strict=True):
                if item is arg:
                    own = tensors[start : start + count]
                    kept += own
                    if args is self.args and isinstance(frame, Frame):
                        frames.append((count, _Given(arg, own, frame)))
                    else:
                        frames.append((count, frame))
                    break
                start += count
            else:
                found, frame = framed(item, self.what, f"the residuals: {index}")
                kept += found
                frames.append((len(found), frame))
        self.kept = _Row(frames)
        return kept

    def again(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of what is kept, computed once more of those of the arguments."""
        return self.run(self.around(tensors), tensors)[1]

    def apart(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tensors of the result, and of what is kept and is no argument."""
        outs, kept = self.run(self.around(tensors), tensors)
        places = self.find(tensors, kept)
        # An argument that is returned as it is cannot be saved.
        found = [x.view_as(x) if id(x) in places else x for x in outs]
        return (*found, *[x for x, k in zip(kept, self.sources, strict=True) if k is None])

    def find(self, tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> dict[int, int]:
        """Notes which tensors that are kept are arguments; the place of each argument by its id."""
        places = {id(tensor): place for place, tensor in enumerate(tensors)}
        self.sources = [places.get(id(tensor)) for tensor in kept]
        return places

    def together(self, tensors: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
        """The tensors that are kept, from those of the arguments and the others."""
        rest = iter(others)
        return [next(rest) if place is None else tensors[place] for place in self.sources]

    def pull(
        self, outs: Sequence[bool], kept: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor | None]:
        """The cotangents of the tensors of the arguments.

        Args:
            outs: which tensors of the result have one; the others are holes.
            kept: the tensors of what was kept.
            cotangents: of the result.
        """
        given: Sequence[Tensor | None] = cotangents
        if False in outs:
            given = [x if has else None for x, has in zip(cotangents, outs, strict=True)]
        return self.opened(self.backward(self.kept.build(kept), self.outs.build(given)))

    def opened(self, found: Any) -> list[Tensor | None]:
        """The tensors of the cotangents that ``backward`` returned."""
        if not isinstance(found, tuple) or len(found) != len(self.args):
            raise TypeError(
                f"{self.what}: bwd returns a tuple with a cotangent for each of the "
                f"{len(self.args)} differentiated arguments, got {describe(found)}. "
                f"Write for one: return (cotangent,); and None for what has none"
            )
        grads: list[Tensor | None] = []
        for index, (arg, grad) in enumerate(zip(self.args, found, strict=True)):
            if type(arg) is Tensor and type(grad) is Tensor and grad.shape == arg.shape:
                grads.append(grad if is_inexact(arg) else None)  # the usual case, with less
            else:
                grads += self._row(index, arg, grad)
        return grads

    def _row(self, index: int, arg: Any, grad: Any) -> list[Tensor | None]:
        """The cotangents of the tensors of one argument."""
        count, frame = self.frames[index]
        if grad is None:
            return [None] * count
        leaves: Sequence[Any] = [arg]
        column: Sequence[Any] = [grad]
        if not isinstance(arg, Tensor):
            try:
                _, leaves, (column,) = core.columns(arg, (grad,))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{self.what}: the cotangent of argument {index}: {error}. Return a tree like "
                    f"the argument, with None for what has none"
                ) from None
        row: list[Tensor | None] = []
        for place in frame.places:
            leaf, value = leaves[place], column[place]
            if value is not None and (not isinstance(value, Tensor) or value.shape != leaf.shape):
                raise ValueError(self._misfit(index, path_of(arg, place), leaf, value))
            row.append(value if is_inexact(leaf) else None)
        return row + [None] * (count - len(row))

    def _misfit(self, index: int, path: str, leaf: Tensor, value: Any) -> str:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        return (
            f"{self.what}: the cotangent of argument {index}{f': {path}' if path else ''} has "
            f"shape {tuple(leaf.shape)} and was given {got}. Return a tensor of the same shape, "
            f"or None"
        )


class _Given:
    """An argument that is kept as it is: itself, around the very tensors that it had."""

    __slots__ = ("frame", "tensors", "tree")

    def __init__(self, tree: Any, tensors: Sequence[Tensor], frame: Frame) -> None:
        self.tree = tree
        self.tensors = tensors
        self.frame = frame

    def build(self, tensors: Sequence[Tensor | None]) -> Any:
        """The tree around these tensors."""
        same = all(map(operator.is_, tensors, self.tensors))
        return self.tree if same else self.frame.build(tensors)


class _Whole:
    """A module all of whose leaves are tensors, in eager code: itself, around its own leaves."""

    __slots__ = ("leaves", "tree")

    def __init__(self, tree: Any, leaves: tuple[Tensor, ...]) -> None:
        self.tree = tree
        self.leaves = leaves

    @property
    def places(self) -> range:
        """Which leaves are tensors."""
        return range(len(self.leaves))

    def build(self, tensors: Sequence[Tensor | None]) -> Any:
        """The module around these tensors."""
        if all(map(operator.is_, tensors, self.leaves)):
            return self.tree
        return unflatten_module(spec_of(self.tree), tensors, self.tree._rng)


def _whole(tree: Any) -> _Whole | None:
    """The frame of a module whose leaves are tensors and that holds no key; otherwise ``None``."""
    if not is_module(tree) or getattr(tree._rng, "key", None) is not None:
        return None
    leaves = leaves_of(tree)
    return _Whole(tree, leaves) if all([type(leaf) is Tensor for leaf in leaves]) else None


class _Row:
    """A plain tuple of trees without their tensors, of each the number of tensors and the frame."""

    __slots__ = ("frames",)

    def __init__(self, frames: list[tuple[int, Frame | _Given | _Whole]]) -> None:
        self.frames = frames

    def build(self, tensors: Sequence[Tensor]) -> tuple[Any, ...]:
        """The tuple around these tensors."""
        return tuple(_built(self.frames, tensors))


DETACH = "; or capture tensor.detach()"
"""What else to write where a captured tensor is differentiated."""

_ONE = (1, LONE)


def _built(
    frames: Sequence[tuple[int, Frame | _Given | _Whole]], tensors: Sequence[Tensor | None]
) -> list[Any]:
    """Trees around tensors."""
    if len(frames) == len(tensors) and all([frame is LONE for _, frame in frames]):
        return list(tensors)
    trees, start = [], 0
    for count, frame in frames:
        trees.append(frame.build(tensors[start : start + count]))
        start += count
    return trees
