"""Many gradients at once: of each example, or of each member of an ensemble.

Both are ``vmap(grad(func))``. Where the tensors are small, calling operators is what costs. There
it is cheaper to map the losses alone, add them up, and take the gradient of the sum on the tape:
each copy of a leaf belongs to one loss, so its gradient is that of this loss. Where the copies
outgrow the caches, moving them costs more than the calls, and ``vmap(grad)`` is used. It is also
used where ``func`` takes a derivative itself, or where torch's rules for ``vmap`` would change the
numbers; the graph of the losses shows that after one call of ``func``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Literal, overload

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd
from parallax.func.arguments import (
    called,
    check_chunk_size,
    check_flags,
    check_in_dims,
    check_randomness,
)  # fmt: skip
from parallax.func.call import Argnums, Call, picked
from parallax.func.engines import SecondOrderError, gradient_by_tape, on_tape
from parallax.func.grad import grad, scalar_and_aux
from parallax.func.moving import filled
from parallax.func.nesting import Nesting
from parallax.func.results import open_tensors
from parallax.func.signatures import A, Aux, P
from parallax.func.vmap import Batch, run_flat, vmap

__all__ = ["ensemble_grad", "per_sample_grad"]

LARGEST = 4 * 2**20
"""Bytes of copied leaves up to which the gradient of the sum is cheaper, as measured."""


@overload
def per_sample_grad(
    func: Callable[Concatenate[A, P], Any],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], A]: ...
@overload
def per_sample_grad(
    func: Callable[Concatenate[A, P], tuple[Any, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], tuple[A, Aux]]: ...
@overload
def per_sample_grad(
    func: Callable[P, Any],
    argnums: int | tuple[int, ...],
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[P, Any]: ...
def per_sample_grad(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes one gradient per example, as ``vmap(grad(func))`` does, faster.

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
    what = called("per_sample_grad", func)
    return _many(func, what, argnums, has_aux, in_dims, (None, 0), randomness, chunk_size)


@overload
def ensemble_grad(
    func: Callable[Concatenate[A, P], Any],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], A]: ...
@overload
def ensemble_grad(
    func: Callable[Concatenate[A, P], tuple[Any, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], tuple[A, Aux]]: ...
@overload
def ensemble_grad(
    func: Callable[P, Any],
    argnums: int | tuple[int, ...],
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[P, Any]: ...
def ensemble_grad(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes one gradient per member, as ``vmap(grad(func))`` does, faster.

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
    what = called("ensemble_grad", func)
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
    one = grad(func, argnums, has_aux)
    check_flags(what, has_aux=has_aux)
    check_randomness(what, randomness)
    check_chunk_size(what, chunk_size)
    if in_dims is not None:
        check_in_dims(what, in_dims)

    @wraps(func, updated=())
    def gradients_of(*args: Any, **kwargs: Any) -> Any:
        dims = in_dims
        if dims is None:
            moving = picked(what, argnums, args)
            dims = tuple([default[0 if k in moving else 1] for k in range(len(args))])

        def mapped() -> Any:
            return vmap(one, dims, 0, randomness, chunk_size=chunk_size)(*args, **kwargs)

        # What torch draws by itself is to be drawn once.
        if not on_tape() or randomness != "error":
            return mapped()
        summed = _Summed(func, what, argnums, args, kwargs, dims, has_aux)
        if summed.nbytes(chunk_size) <= LARGEST:
            try:
                return summed.gradients(chunk_size)
            except SecondOrderError:
                # Torch's rules for vmap of a backward, of a batch norm for example, are not exact
                # where that is differentiated in its turn.
                pass
            except RuntimeError as error:
                if not autograd.is_inference_refusal(error):
                    raise
            with random.reuse():
                return mapped()
        try:
            return mapped()
        except RuntimeError as error:
            if not autograd.is_dtype_refusal(error):
                raise
            # Under autocast the backward of a norm has no rule for vmap; that of a sum needs none.
            try:
                with random.reuse():
                    return summed.gradients(chunk_size)
            except SecondOrderError:
                raise error from None

    return gradients_of


class _Summed:
    """The losses of all, as a function of one copy of each leaf for each loss.

    Attributes:
        batch: the arguments, every leaf that moves mapped.
        places: where the leaves that move are among the mapped tensors.
    """

    __slots__ = ("batch", "call", "closing", "has_aux", "nesting", "places")

    closing: tuple[Callable[[Sequence[Any]], Any], int]

    def __init__(
        self,
        func: Callable[..., Any],
        what: str,
        argnums: Argnums,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dims: tuple[Any, ...],
        has_aux: bool,
    ) -> None:
        self.nesting = nesting = Nesting(func, args, kwargs)
        self.call = Call(nesting.func, what, argnums, nesting.args, nesting.kwargs)
        self.has_aux = has_aux
        moving = dict(zip(self.call.indices, self.call.parts, strict=True))
        self.batch = Batch(self.call.args, dims, what, moving)
        mapped = {part.index: part for part in self.batch.parts}
        self.places: list[int] = []
        for index, part in moving.items():
            where = {place: k for k, place in enumerate(mapped[index].places, mapped[index].start)}
            self.places += [where[place] for place in part.places]

    def nbytes(self, chunk_size: int | None) -> int:
        """How much a copy of each leaf for each loss of a chunk takes."""
        whole = sum([self.batch.tensors[place].nbytes for place in self.places])
        size = self.batch.size
        return whole if chunk_size is None or chunk_size >= size else whole * chunk_size // size

    def gradients(self, chunk_size: int | None) -> Any:
        """The stacked gradients, with the stacked ``aux`` if there is one.

        Raises:
            SecondOrderError: if ``func`` takes derivatives itself.
        """
        size = self.batch.size
        step = size if chunk_size is None else chunk_size
        # The cotangent of each loss is one, so it is their sum that is differentiated.
        found = [
            gradient_by_tape(_Chunk(self, start, min(step, size - start)), _as_it_is, False)
            for start in range(0, size, step)
        ]
        dims = [self.batch.dims[place] for place in self.places]
        grads = _joined([grads for grads, _, _ in found], dims)
        trees = self.call.trees(
            [g.movedim(d, 0) if d else g for g, d in zip(grads, dims, strict=True)]
        )
        close, count = self.closing
        tensors = _joined([beside or [] for _, _, beside in found])
        self.nesting.relay(tensors[count:], self.batch.aside())
        aux = close(tensors[:count])
        return (trees, aux) if self.has_aux else trees

    def losses(self, members: Sequence[Tensor]) -> list[Tensor]:
        """The loss of one member, and the tensors that come beside it."""
        call = self.call
        result = self.nesting.call(self.batch.around(members))
        loss, aux = scalar_and_aux(result, call.what, self.has_aux)
        beside, close = open_tensors(aux, call.what)
        self.closing = close, len(beside)
        return [loss, *beside, *self.nesting.emitted()]


class _Chunk:
    """Some of the losses, to be differentiated as one."""

    __slots__ = ("size", "summed", "tensors", "values", "what")

    def __init__(self, summed: _Summed, start: int, size: int) -> None:
        self.summed = summed
        self.what = summed.call.what
        self.size = size
        batch = summed.batch
        self.tensors = batch.tensors
        if size < batch.size:
            pairs = zip(batch.tensors, batch.dims, strict=True)
            self.tensors = [tensor.narrow(dim, start, size) for tensor, dim in pairs]
        self.values = [self.tensors[place] for place in summed.places]

    def at(self, values: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor] | None]:
        """The losses at these copies, and what came beside them."""
        tensors = filled(list(self.tensors), self.summed.places, values)
        found = run_flat(self.summed.losses, tensors, self.summed.batch.dims, self.size, "error")
        return found[0], found[1:] or None


def _as_it_is(result: Any) -> Any:
    return result


def _joined(columns: list[list[Tensor]], dims: Sequence[int] | None = None) -> list[Tensor]:
    """The tensors of all chunks, one after the other."""
    if len(columns) == 1:
        return columns[0]
    rows = zip(*columns, strict=True)
    return [torch.cat(row, dims[k] if dims else 0) for k, row in enumerate(rows)]
