"""``jvp``, ``linearize`` and ``jacfwd``: derivatives taken forwards from the arguments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from parallax import random
from parallax._compat.dynamo import is_compiling
from parallax.func.call import Argnums, Call, call_at
from parallax.func.engines import on_tape, through
from parallax.func.moving import name_of
from parallax.func.results import Result, Taking
from parallax.func.vjp import jacobian, jacrev_as

__all__ = ["hessian", "jacfwd", "jvp", "linearize", "tangents_of"]


def jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """The value of ``func`` and its derivative along ``tangents``, as ``torch.func.jvp``.

    Args:
        func: takes the primals to a tensor, a module, or any pytree of them.
        primals: a tuple of where to evaluate it; modules, tensors, or pytrees that hold them.
        tangents: a tuple of the same structure; a hole means zero. What stands beside leaves that
            are not differentiated (buffers, frozen ones) is not read.
        strict: whether a result that does not depend on the primals is an error.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.

    Returns:
        ``(result, derivative)``, and ``aux`` as a third if ``has_aux``.

    Raises:
        TypeError: if primals or tangents are no tuple, or the function returns something that
            cannot be differentiated.
        ValueError: if the tangents do not fit the primals; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.jvp(torch.sin, (torch.zeros(()),), (torch.tensor(2.0),))
        (tensor(0.), tensor(2.))
    """
    what = f"func.jvp({name_of(func)})"
    call = call_at(func, what, primals)
    moving = tangents_of(call, tangents, what)
    taking = Taking(what, has_aux)
    flat, after = through(call, taking)
    found: Any = torch.func.jvp(
        flat, tuple(call.values), tuple(moving), strict=strict, has_aux=True
    )
    values, derivatives, beside = found
    others, aux = after(beside)
    pair = taking.result.rebuilt(values, others), taking.result.alone(derivatives)
    return (*pair, aux) if has_aux else pair


def tangents_of(call: Call, tangents: Any, what: str) -> list[Tensor]:
    """One tangent for each leaf of the call that moves."""
    if not isinstance(tangents, tuple) or len(tangents) != len(call.parts):
        got = len(tangents) if isinstance(tangents, tuple) else type(tangents).__name__
        raise TypeError(
            f"{what}: tangents must be a tuple with one tree for each of the {len(call.parts)} "
            f"primals, got {got}"
        )
    return [
        tangent
        for part, tree in zip(call.parts, tangents)  # noqa: B905  # dynamo traces no strict=
        for tangent in part.beside(tree, what, "tangents")
    ]


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """The value of ``func`` and its linear approximation, as ``torch.func.linearize``.

    Worth it when many products at one point are wanted: ``func`` is evaluated twice and traced.
    Where the point itself is differentiated or mapped, and in a compiled function, nothing is
    saved and each product costs a ``jvp``.

    Args:
        func: takes the primals to a tensor, a module, or any pytree of them.
        *primals: where to evaluate it; modules, tensors, or any pytree that holds them.

    Returns:
        ``(result, jvp_fn)``; ``jvp_fn`` takes tangents in the shape of the primals, where a hole
        means zero, to the derivative along them.

    Raises:
        TypeError: if the function returns something that cannot be differentiated.
        ValueError: if there is nothing to differentiate with respect to.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> value, push = func.linearize(torch.sin, torch.zeros(()))
        >>> push(torch.tensor(2.0))
        tensor(2.)
    """
    what = f"func.linearize({name_of(func)})"
    call = call_at(func, what, primals)
    result = Result(call.at(call.values), what)
    again = [*call.values, *result.values]
    differentiable = torch.is_grad_enabled() and any([value.requires_grad for value in again])
    push = _pushed(call, what) if differentiable or not on_tape() else _recorded(call, result, what)

    def jvp_fn(*tangents: Any) -> Any:
        return result.alone(push(*tangents_of(call, tangents, what)))

    return result.around(result.values), jvp_fn


Push = Callable[..., Sequence[Tensor]]


def _pushed(call: Call, what: str) -> Push:
    """The derivative along tangents, from the function anew each time.

    What ``torch.func.linearize`` records is constant where somebody differentiates the point
    itself: silently wrong under ``grad``, refused under ``vmap``, ``jvp`` and by dynamo.
    """

    def flat(*values: Tensor) -> list[Tensor]:
        # Its effects were collected when it was evaluated first.
        return Result(call.nested()[0].at(values), what).values

    def push(*moving: Tensor) -> Sequence[Tensor]:
        with nullcontext() if is_compiling() else random.reuse():
            derivatives: Any = torch.func.jvp(flat, tuple(call.values), moving)[1]
        return derivatives  # type: ignore[no-any-return]  # a list of tensors

    return push


def _recorded(call: Call, result: Result, what: str) -> Push:
    """The same from a recording by ``torch.func.linearize``."""
    known = [result.values]

    def flat(*values: Tensor) -> list[Tensor]:
        if known:  # it evaluates the function first, which is done
            return known.pop()
        with random.reuse():
            return Result(call.nested()[0].at(values), what).values

    with warnings.catch_warnings():
        # torch's own: its folding of constants looks for them in the wrong graph first.
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
        return torch.func.linearize(flat, *call.values)[1]


def jacfwd(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
) -> Callable[..., Any]:
    """A function that computes the Jacobian of ``func`` column by column: ``torch.func.jacfwd``.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.
        randomness: as for ``vmap``, for torch's own random functions inside.

    Returns:
        A function of the arguments of ``func`` to the Jacobian, in the form of ``jacrev``.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.jacfwd(lambda x: x**2)(torch.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    what = f"func.jacfwd({name_of(func)})"
    return _jacfwd_as(what, func, argnums, has_aux=has_aux, randomness=randomness)


def _jacfwd_as(
    what: str,
    func: Callable[..., Any],
    argnums: Argnums,
    *,
    has_aux: bool = False,
    randomness: str = "error",
) -> Callable[..., Any]:
    def transform(flat: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
        return torch.func.jacfwd(flat, places, has_aux=True, randomness=randomness)

    @wraps(func, updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        return jacobian(transform, Call(func, what, argnums, args, kwargs), has_aux, levels=2)

    return jacobian_of


def hessian(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """A function that computes the Hessian of ``func``, as ``torch.func.hessian``.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several.

    Returns:
        A function of the arguments of ``func`` to the Hessian: a tree of the argument's structure
        whose leaves are such trees, so that ``h.first.weight.second.bias`` is the block of these
        two leaves. ``func.hessian_matrix`` gives one matrix; ``func.hvp`` its products.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.hessian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    what = f"func.hessian({name_of(func)})"
    return _jacfwd_as(what, jacrev_as(what, func, argnums), argnums)
