"""Many gradients at once: of each example, or of each member of an ensemble.

Both are ``vmap(grad(func))``. Where the tensors are small the calls of operators are what costs,
and it is cheaper to map the losses alone, add them up and ask the tape for the gradient of the
sum: each copy of a leaf meets one loss only, so it is the gradient of that loss. Where the copies
outgrow the caches, moving them costs more than the calls, and ``vmap(grad)`` it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from torch import Tensor

from parallax.func.call import Call
from parallax.func.dims import Each, spread
from parallax.func.engines import gradient, on_tape
from parallax.func.grad import grad, scalar_and_aux
from parallax.func.moving import Moving, name_of
from parallax.func.nesting import Nesting
from parallax.func.results import open_tensors
from parallax.func.vmap import Batch, run_flat, vmap

__all__ = ["ensemble_grad", "per_sample_grad"]

LARGEST = 4 * 2**20
"""Bytes of copied leaves up to which the gradient of the sum is cheaper, as measured."""


def per_sample_grad(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes one gradient per example: ``vmap(grad(func))``, and faster.

    Args:
        func: takes a model and one example to a scalar, or to a pair ``(loss, aux)``.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.
        in_dims: as for ``vmap``; by default all arguments but the differentiated ones are mapped
            over their first dimension.
        randomness: as for ``vmap``.
        chunk_size: how many examples to compute at once; by default all.

    Returns:
        A function of the arguments of ``func``, the examples stacked, to a tree of the model's
        structure: each gradient has a leading dimension of examples. With ``has_aux`` a pair of
        that and the stacked ``aux``.

    Raises:
        TypeError: as ``grad`` and ``vmap``.
        ValueError: as ``grad`` and ``vmap``.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.per_sample_grad(lambda w, x: w * x)(torch.tensor(1.0), torch.tensor([2.0, 3.0]))
        tensor([2., 3.])
    """
    what = f"func.per_sample_grad({name_of(func)})"
    return _many(func, what, argnums, has_aux, in_dims, (None, 0), randomness, chunk_size)


def ensemble_grad(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes one gradient per member: ``vmap(grad(func))``, and faster.

    Args:
        func: takes one member and data to a scalar, or to a pair ``(loss, aux)``.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.
        in_dims: as for ``vmap``; by default the differentiated arguments are mapped over their
            first dimension and every member gets the same others.
        randomness: as for ``vmap``.
        chunk_size: how many members to compute at once; by default all.

    Returns:
        A function of a stack of models (``tree.stack``) and the other arguments of ``func`` to
        the stack of gradients. With ``has_aux`` a pair of that and the stacked ``aux``.

    Raises:
        TypeError: as ``grad`` and ``vmap``.
        ValueError: as ``grad`` and ``vmap``.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.ensemble_grad(lambda w, x: w * w * x)(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
        tensor([ 6., 12.])
    """
    what = f"func.ensemble_grad({name_of(func)})"
    return _many(func, what, argnums, has_aux, in_dims, (0, None), randomness, chunk_size)


def _many(
    func: Callable[..., Any],
    what: str,
    argnums: int | tuple[int, ...],
    has_aux: bool,
    in_dims: tuple[Any, ...] | None,
    default: tuple[int | None, int | None],
    randomness: str,
    chunk_size: int | None,
) -> Callable[..., Any]:
    @wraps(func, updated=())
    def gradients_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        dims = in_dims
        if dims is None:
            dims = tuple([default[0 if k in call.indices else 1] for k in range(len(args))])
        batch = Batch(args, dims, what)
        if chunk_size is None and on_tape() and _nbytes(call, batch) <= LARGEST:
            summed = _Summed(call, batch, dims, has_aux, randomness)
            # The cotangent of each loss is one, so it is their sum that is differentiated.
            grads, _, aux = gradient(summed, lambda result: result)
            trees = call.trees(summed.leading(grads))
            return (trees, aux) if has_aux else trees
        one = grad(func, argnums, has_aux)
        return vmap(one, dims, 0, randomness, chunk_size=chunk_size)(*args, **kwargs)

    return gradients_of


def _nbytes(call: Call, batch: Batch) -> int:
    """How much a copy of each leaf for each loss takes, to within what is mapped already."""
    mapped = {index for index, _, _, _ in batch.parts}
    return sum(
        [
            sum([value.nbytes for value in part.values]) * (1 if index in mapped else batch.size)
            for index, part in zip(call.indices, call.parts, strict=True)
        ]
    )


class _Summed(Call):
    """The sum of the losses, as a function of one copy of each leaf for each loss.

    Attributes:
        batch: the arguments, every leaf that moves mapped.
        places: where the leaves that move are among the mapped tensors.
    """

    __slots__ = ("batch", "has_aux", "nesting", "places", "randomness")

    def __init__(
        self, call: Call, batch: Batch, dims: tuple[Any, ...], has_aux: bool, randomness: str
    ) -> None:
        self.what = call.what
        self.argnums = call.argnums
        self.has_aux = has_aux
        self.randomness = randomness
        args, over = list(call.args), list(dims)
        for index, part in zip(call.indices, call.parts, strict=True):
            args[index], over[index] = _copied(part, dims[index], batch.size, call.what, index)
        self.nesting = Nesting(call.func, args, call.kwargs)
        if any(a is not b for a, b in zip(self.nesting.args, call.args, strict=True)):
            batch = Batch(self.nesting.args, tuple(over), call.what)
        self.batch = batch
        self.places: list[int] = []
        for index, part in zip(call.indices, call.parts, strict=True):
            _, start, held, _ = next(entry for entry in batch.parts if entry[0] == index)
            self.places += [start + held.index(place) for place in part.places]
        self.values = [batch.tensors[place] for place in self.places]

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """The losses at these copies, and what came beside them."""
        nesting = self.nesting
        tensors = list(self.batch.tensors)
        for place, value in zip(self.places, values, strict=True):
            tensors[place] = value
        closes: list[Any] = []

        def flat(members: Sequence[Tensor]) -> list[Tensor]:
            result = nesting.func(*self.batch.around(members), **nesting.kwargs)
            loss, aux = scalar_and_aux(result, self.what, self.has_aux)
            beside, close = open_tensors(aux)
            closes[:] = [close, 1 + len(beside)]
            return [loss, *beside, *nesting.emitted()]

        found = run_flat(flat, self.batch, tensors, self.randomness)
        close, count = closes
        nesting.relay(found[count:])
        return found[0], close(found[1:count])

    def leading(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients with the mapped dimension first."""
        dims = [self.batch.dims[place] for place in self.places]
        return [g.movedim(dim, 0) if dim else g for g, dim in zip(grads, dims, strict=True)]


def _copied(part: Moving, dims: Any, size: int, what: str, index: int) -> tuple[Any, Any]:
    """An argument of which each leaf that moves is mapped, and over which dimensions."""
    if type(dims) is int:
        return part.tree, dims
    each = spread(dims, part.tree, f"{what}, in_dims", f"argument {index}")
    over: list[Any] = list(each)
    values = []
    for place, value in zip(part.places, part.values, strict=True):
        values.append(value.expand(size, *value.shape) if over[place] is None else value)
        over[place] = over[place] or 0
    return part.around(values), Each(over)
