"""Norms of per-sample gradients, and the sum of the clipped ones, for DP-SGD."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from math import isnan
from typing import Any, Concatenate, Literal, overload

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, dynamo
from parallax.func.arguments import called, check_flags, short
from parallax.func.call import Argnums, Call
from parallax.func.engines import on_tape
from parallax.func.outer import PerSample
from parallax.func.per_sample import default_dims, many_gradients
from parallax.func.per_sample_factors import InexactError, WithoutRuleError, factored
from parallax.func.signatures import Aux, G, Like, LikeAnd, P
from parallax.func.summed import Summed
from parallax.tree import core

__all__ = ["clipped_grad", "per_sample_norms"]


@overload
def per_sample_norms(
    func: Callable[P, Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Callable[P, Tensor]: ...
@overload
def per_sample_norms(
    func: Callable[P, tuple[Any, Aux]],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Callable[P, tuple[Tensor, Aux]]: ...
def per_sample_norms(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Callable[..., Any]:
    """A function that computes the norm of each example's gradient, all leaves together.

    The gradients themselves are not computed where a weight meets ``F.linear``, ``F.conv1d`` to
    ``F.conv3d`` or ``F.embedding``, as it does in the layers of ``nn`` and in most lifted modules;
    see ``clipped_grad``.

    Args:
        func: takes a model and one example to a scalar, or to a pair ``(loss, aux)``.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.
        in_dims: as for ``per_sample_grad``.
        randomness: as for ``vmap``.
        chunk_size: how many examples to compute at once; by default all.
        exact: as for ``clipped_grad``.

    Returns:
        A function of the arguments of ``func``, the examples stacked, to a tensor of shape
        ``(batch,)``. With ``has_aux`` a pair of that and the stacked ``aux``.

    Raises:
        TypeError: as ``per_sample_grad``.
        ValueError: as ``per_sample_grad``; with ``exact=False``, if a leaf has no rule.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.per_sample_norms(lambda w, x: w @ x)(
        ...     torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        ... )
        tensor([5., 2.])
    """
    run = _Run("per_sample_norms", func, argnums, has_aux, in_dims, randomness, chunk_size, exact)

    @wraps(func, updated=())
    def norms_of(*args: Any, **kwargs: Any) -> Any:
        norms, aux = run.norms(args, kwargs)
        return (norms, aux) if has_aux else norms

    return norms_of


@overload
def clipped_grad(
    func: Callable[Concatenate[G, P], Any],
    max_norm: float,
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Like[G, P]: ...
@overload
def clipped_grad(
    func: Callable[Concatenate[G, P], tuple[Any, Aux]],
    max_norm: float,
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> LikeAnd[G, P, Aux]: ...
@overload
def clipped_grad(
    func: Callable[P, Any],
    max_norm: float,
    argnums: int | tuple[int, ...],
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Callable[P, Any]: ...
def clipped_grad(
    func: Callable[..., Any],
    max_norm: float,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    in_dims: tuple[Any, ...] | None = None,
    randomness: str = "error",
    chunk_size: int | None = None,
    exact: bool = True,
) -> Callable[..., Any]:
    """A function that sums per-sample gradients, each scaled down to at most a norm.

    The gradient of DP-SGD before its noise: ``sum_i min(1, max_norm / norm_i) * grad_i``, with the
    gradients of ``per_sample_grad`` and the norm over all leaves. Draw the noise from a key, add it
    and divide by the size of the batch.

    Where a weight meets ``F.linear``, ``F.conv1d`` to ``F.conv3d`` or ``F.embedding``, as it does
    in the layers of ``nn`` and in most lifted modules, its per-sample gradients are not computed:
    norms and sum come from the layer's inputs and the gradients of its outputs. Any other use of a
    leaf is differentiated for each example. The numbers are the same.

    Args:
        func: takes a model and one example to a scalar, or to a pair ``(loss, aux)``.
        max_norm: the largest norm of an example's gradient.
        argnums: which positional argument to differentiate, or a tuple of several; the norm is
            that of all together.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.
        in_dims: as for ``per_sample_grad``.
        randomness: as for ``vmap``.
        chunk_size: how many examples to compute at once; by default all.
        exact: ``False`` refuses a leaf of two or more dimensions whose per-sample gradient would
            have to be computed. It is the scale and shift of a norm, or an error.

    Returns:
        A function of the arguments of ``func``, the examples stacked, to a tree of the model's
        structure. With ``has_aux`` a pair of that and the stacked ``aux``.

    Raises:
        TypeError: as ``per_sample_grad``; if ``max_norm`` is no number.
        ValueError: as ``per_sample_grad``; if ``max_norm`` is not above 0; with ``exact=False``,
            if a leaf has no rule.

    Source: Abadi et al., "Deep Learning with Differential Privacy", 2016; without per-sample
    gradients: Li et al., "Large Language Models Can Be Strong Differentially Private Learners",
    2022; Bu et al., "Differentially Private Optimization on Large Model at Small Cost", 2023.

    Example:
        >>> import torch
        >>> from parallax import func, nn, random, tree
        >>> model = nn.Linear(2, 1).initialize(0)
        >>> grad = func.clipped_grad(lambda m, x: m(x).sum(), max_norm=1.0)(model, torch.ones(8, 2))
        >>> vector, unravel = tree.ravel(grad)
        >>> noise = 0.5 * random.normal(random.key(1), vector.shape)
        >>> private = unravel((vector + noise) / 8)  # a gradient for opt.step
        >>> tree.norm(grad)  # eight of norm 1
        tensor(8.0000)
    """
    _check_max_norm(called("clipped_grad", func), max_norm)
    run = _Run("clipped_grad", func, argnums, has_aux, in_dims, randomness, chunk_size, exact)

    @wraps(func, updated=())
    def clipped_of(*args: Any, **kwargs: Any) -> Any:
        grads, aux = run.clipped(float(max_norm), args, kwargs)
        return (grads, aux) if has_aux else grads

    return clipped_of


class _Run:
    """What both functions share: the arguments, and which way the gradients are computed."""

    def __init__(
        self,
        name: str,
        func: Callable[..., Any],
        argnums: Argnums,
        has_aux: bool,
        in_dims: tuple[Any, ...] | None,
        randomness: str,
        chunk_size: int | None,
        exact: bool,
    ) -> None:
        self.what = what = called(name, func)
        check_flags(what, exact=exact)
        self.whole = many_gradients(
            func, what, argnums, has_aux, in_dims, (None, 0), randomness, chunk_size
        )
        self.func, self.argnums, self.has_aux = func, argnums, has_aux
        self.in_dims, self.randomness, self.chunk_size = in_dims, randomness, chunk_size
        self.exact = exact

    def norms(self, args: Any, kwargs: Any) -> tuple[Tensor, Any]:
        """The norms and ``aux``."""
        found = self._factored(_norms, args, kwargs)
        if found is not None:
            norms, _, aux = found
            return torch.cat(norms), aux
        grads, aux = self._exactly(args, kwargs)
        return _norms(_as_wholes(grads)), aux

    def clipped(self, max_norm: float, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The sum of the clipped gradients, and ``aux``."""

        def finish(leaves: list[PerSample]) -> list[Tensor]:
            factors = (max_norm / _norms(leaves)).clamp(max=1.0)
            return [leaf.weighted_sum(factors) for leaf in leaves]

        found = self._factored(finish, args, kwargs)
        if found is not None:
            chunks, call, aux = found
            return call.trees([sum(each[1:], each[0]) for each in zip(*chunks, strict=True)]), aux
        grads, aux = self._exactly(args, kwargs)
        sums = iter(finish(_as_wholes(grads)))
        return core.map(lambda _: next(sums), grads), aux

    def _factored(
        self, finish: Callable[[list[PerSample]], Any], args: Any, kwargs: Any
    ) -> tuple[list[Any], Call, Any] | None:
        """What ``finish`` made of each chunk, the call and ``aux``; ``None`` if not exact here."""
        if not (on_tape() or dynamo.is_compiling()) or self.randomness != "error":
            self._refuse_whole("it runs inside of a transform, or randomness= is given")
            return None
        dims = self.in_dims
        if dims is None:
            dims = default_dims(self.what, self.argnums, args, (None, 0))
        summed = Summed(
            self.func, self.what, self.argnums, args, kwargs, dims, self.has_aux
        )  # fmt: skip
        if summed.batch.size == 0:  # no sample, so no gradient of one is computed
            return None
        try:
            found, aux = factored(summed, self.chunk_size, self.exact, finish)
        except WithoutRuleError as error:
            raise ValueError(str(error)) from None
        except InexactError as error:
            self._refuse_whole(str(error))
            return None
        except RuntimeError as error:
            if not autograd.is_inference_refusal(error):
                raise
            self._refuse_whole("a tensor was made in inference mode")
            return None
        return found, summed.call, aux

    def _exactly(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """All per-sample gradients and ``aux``; what was drawn is drawn again."""
        with random.reuse():
            found = self.whole(*args, **kwargs)
        return found if self.has_aux else (found, None)

    def _refuse_whole(self, reason: str) -> None:
        """Raises where per-sample gradients have to be computed and must not be."""
        if not self.exact:
            raise ValueError(
                f"{self.what}: exact=False refuses per-sample gradients of matrices, and here they "
                f"have to be computed: {reason}. Leave out exact=False"
            )


def _as_wholes(grads: Any) -> list[PerSample]:
    return [PerSample(grad.shape[1:], [], [grad]) for grad in core.leaves(grads)]


def _norms(leaves: list[PerSample]) -> Tensor:
    """The norm of each sample's gradient over all leaves."""
    squares = [leaf.squared_norms() for leaf in leaves]
    return sum([each.to(squares[0].device) for each in squares[1:]], squares[0]).sqrt()


def _check_max_norm(what: str, max_norm: Any) -> None:
    if not isinstance(max_norm, (int, float)) or isinstance(max_norm, bool):
        raise TypeError(
            f"{what}: max_norm must be a number, got {short(max_norm)}. Write max_norm=1.0"
        )
    if isnan(max_norm) or max_norm <= 0:
        raise ValueError(f"{what}: max_norm must be above 0, got {max_norm}. Write max_norm=1.0")
