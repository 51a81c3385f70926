"""Many gradients at once: of each example, or of each member of an ensemble.

Both are ``vmap(grad(func))``. Where the tensors are small, calling operators is what costs. There
it is cheaper to map the losses alone, add them up, and take the gradient of the sum on the tape:
each copy of a leaf belongs to one loss, so its gradient is that of this loss. Where the copies
outgrow the caches, moving them costs more than the calls, and ``vmap(grad)`` is used. It is also
used where ``func`` takes a derivative itself, or where torch's rules for ``vmap`` would change the
numbers; the graph of the losses shows that after one call of ``func``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Literal, overload

from parallax import random
from parallax._compat import autograd
from parallax._errors.arguments import answered
from parallax.func.arguments import (
    called,
    check_chunk_size,
    check_flags,
    check_in_dims,
    check_randomness,
)  # fmt: skip
from parallax.func.call import Argnums, picked
from parallax.func.engines import on_tape
from parallax.func.grad import grad
from parallax.func.signatures import Aux, G, Like, LikeAnd, P
from parallax.func.summed import Summed
from parallax.func.tape import SecondOrderError
from parallax.func.vmap import vmap

__all__ = ["default_dims", "ensemble_grad", "many_gradients", "per_sample_grad"]

LARGEST = 4 * 2**20
"""Bytes of copied leaves up to which the gradient of the sum is cheaper, as measured."""


@overload
def per_sample_grad(
    func: Callable[Concatenate[G, P], Any],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Like[G, P]: ...
@overload
def per_sample_grad(
    func: Callable[Concatenate[G, P], tuple[Any, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> LikeAnd[G, P, Aux]: ...
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
@answered("func.per_sample_grad", "func.per_sample_grad(loss, in_dims=(None, 0))(model, x)")
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
    return many_gradients(func, what, argnums, has_aux, in_dims, (None, 0), randomness, chunk_size)


@overload
def ensemble_grad(
    func: Callable[Concatenate[G, P], Any],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> Like[G, P]: ...
@overload
def ensemble_grad(
    func: Callable[Concatenate[G, P], tuple[Any, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
) -> LikeAnd[G, P, Aux]: ...
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
@answered("func.ensemble_grad", "func.ensemble_grad(loss, in_dims=(0, None))(models, x)")
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
    return many_gradients(func, what, argnums, has_aux, in_dims, (0, None), randomness, chunk_size)


def many_gradients(
    func: Callable[..., Any],
    what: str,
    argnums: int | tuple[int, ...],
    has_aux: bool,
    in_dims: tuple[Any, ...] | None,
    default: tuple[int | None, int | None],
    randomness: str,
    chunk_size: int | None,
) -> Callable[..., Any]:
    """``per_sample_grad`` and ``ensemble_grad``, which differ in what is mapped by default.

    Args:
        func: as for both, and so are ``argnums``, ``has_aux``, ``in_dims`` and the rest.
        what: the call, for error messages.
        argnums: which arguments are differentiated.
        has_aux: whether ``func`` returns a pair.
        in_dims: what is mapped, or ``None``.
        default: which dimension of the differentiated arguments is mapped then, and of the others.
        randomness: as for ``vmap``.
        chunk_size: how many to compute at once.
    """
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
            dims = default_dims(what, argnums, args, default)

        def mapped() -> Any:
            return vmap(one, dims, 0, randomness, chunk_size=chunk_size)(*args, **kwargs)

        # What torch draws by itself is to be drawn once.
        if not on_tape() or randomness != "error":
            return mapped()
        summed = Summed(func, what, argnums, args, kwargs, dims, has_aux)
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


def default_dims(
    what: str, argnums: Argnums, args: tuple[Any, ...], default: tuple[int | None, int | None]
) -> tuple[int | None, ...]:
    """``in_dims`` where none were given, one for each argument."""
    moving = picked(what, argnums, args)
    return tuple([default[0 if k in moving else 1] for k in range(len(args))])
