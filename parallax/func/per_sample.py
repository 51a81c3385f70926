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

from parallax.func.call import Argnums, Call, picked
from parallax.func.engines import gradient, on_tape
from parallax.func.grad import grad, scalar_and_aux
from parallax.func.moving import filled, name_of
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
        dims = in_dims
        if dims is None:
            moving = picked(what, argnums, args)
            dims = tuple([default[0 if k in moving else 1] for k in range(len(args))])
        if chunk_size is None and on_tape():
            summed = _Summed(func, what, argnums, args, kwargs, dims, has_aux, randomness)
            if summed.nbytes <= LARGEST:
                # The cotangent of each loss is one, so it is their sum that is differentiated.
                grads, _, aux = gradient(summed, _as_it_is)
                trees = summed.trees(summed.leading(grads))
                return (trees, aux) if has_aux else trees
        one = grad(func, argnums, has_aux)
        return vmap(one, dims, 0, randomness, chunk_size=chunk_size)(*args, **kwargs)

    return gradients_of


def _as_it_is(result: Any) -> Any:
    return result


class _Summed(Call):
    """The losses of all, as a function of one copy of each leaf for each loss.

    Attributes:
        batch: the arguments, every leaf that moves mapped.
        places: where the leaves that move are among the mapped tensors.
    """

    __slots__ = ("batch", "closing", "has_aux", "nesting", "places", "randomness")

    def __init__(
        self,
        func: Callable[..., Any],
        what: str,
        argnums: Argnums,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dims: tuple[Any, ...],
        has_aux: bool,
        randomness: str,
    ) -> None:
        self.nesting = nesting = Nesting(func, args, kwargs)
        super().__init__(nesting.func, what, argnums, nesting.args, nesting.kwargs)
        self.has_aux = has_aux
        self.randomness = randomness
        moving = dict(zip(self.indices, self.parts, strict=True))
        self.batch = Batch(self.args, dims, what, moving)
        mapped = {part.index: part for part in self.batch.parts}
        self.places: list[int] = []
        for index, part in moving.items():
            where = {place: k for k, place in enumerate(mapped[index].places, mapped[index].start)}
            self.places += [where[place] for place in part.places]
        self.values = [self.batch.tensors[place] for place in self.places]

    @property
    def nbytes(self) -> int:
        """How much a copy of each leaf for each loss takes."""
        return sum([value.nbytes for value in self.values])

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """The losses at these copies, and what came beside them."""
        tensors = filled(list(self.batch.tensors), self.places, values)
        found = run_flat(self._losses, self.batch, tensors, self.randomness)
        close, count = self.closing
        self.nesting.relay(found[count:], self.batch.aside())
        return found[0], close(found[1:count])

    def _losses(self, members: Sequence[Tensor]) -> list[Tensor]:
        result = self.func(*self.batch.around(members), **self.kwargs)
        loss, aux = scalar_and_aux(result, self.what, self.has_aux)
        beside, close = open_tensors(aux)
        self.closing = close, 1 + len(beside)
        return [loss, *beside, *self.nesting.emitted()]

    def leading(self, grads: list[Tensor]) -> list[Tensor]:
        """The gradients with the mapped dimension first."""
        dims = [self.batch.dims[place] for place in self.places]
        return [g.movedim(dim, 0) if dim else g for g, dim in zip(grads, dims, strict=True)]
