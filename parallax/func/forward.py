"""``jvp``, ``linearize`` and ``jacfwd``: derivatives taken forwards from the arguments.

Where an operator has no derivative in forward mode, reverse mode gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, Literal, cast, overload

import torch
from torch import Tensor

from parallax import random
from parallax._compat import autograd, dynamo, functorch, once
from parallax._errors.arguments import answered
from parallax.func.arguments import called, check_argnums, check_flags, check_randomness
from parallax.func.as_forward import CutError, as_forward
from parallax.func.call import Call, call_at
from parallax.func.engines import on_tape
from parallax.func.jacobians import along, jacobian
from parallax.func.results import Result, Taking
from parallax.func.signatures import A, Aux, P, R, Ts
from parallax.func.taylor import expand
from parallax.func.transforms import through
from parallax.func.underivable import derivative_runs, refuse_what_has_no_derivative
from parallax.tree.recording import RUNNING

__all__ = ["jacfwd", "jvp", "linearize", "tangents_of"]


@overload
def jvp(
    func: Callable[[*Ts], R],
    primals: tuple[*Ts],
    tangents: tuple[*Ts],
    *,
    strict: bool = False,
    has_aux: Literal[False] = False,
) -> tuple[R, R]: ...
@overload
def jvp(
    func: Callable[[*Ts], tuple[R, Aux]],
    primals: tuple[*Ts],
    tangents: tuple[*Ts],
    *,
    strict: bool = False,
    has_aux: Literal[True],
) -> tuple[R, R, Aux]: ...
@overload
def jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    strict: bool = False,
    has_aux: bool = False,
) -> tuple[Any, ...]: ...
@answered("func.jvp", "func.jvp(fn, (x,), (tangent,))")
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
    what = called("jvp", func)
    check_flags(what, strict=strict, has_aux=has_aux)
    call = call_at(func, what, primals)
    moving = tangents_of(call, tangents, what)
    if not (strict or has_aux) and dynamo.is_compiling() and functorch.derivatives_running()[1]:
        # Dynamo cannot take a second forward derivative; an operator does, when its graph runs.
        found, result, rest = expand("curve", call, [[tangent] for tangent in moving], 1)
        count = len(result.values)
        return result.rebuilt(found[:count], rest), result.alone(found[count:])
    taking = Taking(what, has_aux)
    values, derivatives, (others, aux) = along(
        lambda levels: through(call, taking, levels), call.values, moving, strict
    )
    pair = taking.result.rebuilt(values, others), taking.result.alone(derivatives)
    return (*pair, aux) if has_aux else pair


def tangents_of(call: Call, tangents: Any, what: str) -> list[Tensor]:
    """One tangent for each leaf of the call that moves."""
    if not isinstance(tangents, tuple) or len(tangents) != len(call.parts):
        got = len(tangents) if isinstance(tangents, tuple) else type(tangents).__name__
        raise TypeError(
            f"{what}: tangents must be a tuple with one tree for each of the {len(call.parts)} "
            f"primals, got {got}. For one write (tangent,)"
        )
    return [
        tangent
        for part, tree in zip(call.parts, tangents, strict=True)
        for tangent in part.beside(tree, what, "tangents")
    ]


@overload
def linearize(func: Callable[[*Ts], R], *primals: *Ts) -> tuple[R, Callable[[*Ts], R]]: ...
@overload
def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]: ...
def linearize(func: Callable[[*Ts], R], *primals: *Ts) -> tuple[R, Callable[[*Ts], R]]:
    """The value of ``func`` and its linear approximation, as ``torch.func.linearize``.

    Worth it when many products at one point are wanted: ``func`` is evaluated twice and recorded.
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
    what = called("linearize", func)
    call = call_at(func, what, primals)
    result = Result(call.at(call.values), what)
    again = [*call.values, *result.values]
    differentiable = torch.is_grad_enabled() and any([value.requires_grad for value in again])
    push = _pushed(call, what) if differentiable or not on_tape() else _recorded(call, what)

    def jvp_fn(*tangents: *Ts) -> R:
        return cast(R, result.alone(push(*tangents_of(call, tangents, what))))

    return cast(R, result.around(result.values)), jvp_fn


Push = Callable[..., Sequence[Tensor]]


def _pushed(call: Call, what: str) -> Push:
    """The derivative along tangents, from the function anew each time.

    A recording is constant where somebody differentiates the point itself.
    """

    def make(levels: int) -> Any:
        def flat(*values: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            # Its effects were collected when it was evaluated first.
            with derivative_runs():
                return Result(call.nested(levels)[0].at(values), what).values, []

        return flat, list

    refuse_what_has_no_derivative()

    def push(*moving: Tensor) -> Sequence[Tensor]:
        with random.reuse():
            return along(make, call.values, moving)[1]

    return push


def _recorded(call: Call, what: str) -> Push:
    """The same from a recording on the tape: the pullback is linear, and its pullback is wanted.

    ``torch.func.linearize`` ends the process where an operator has no derivative in forward mode.
    """
    again = _pushed(call, what)
    with RUNNING, torch.enable_grad(), random.reuse():
        leaves = [value.detach().requires_grad_() for value in call.values]
        try:
            with as_forward():
                outs = Result(call.nested()[0].at(leaves), what).values
        except CutError:
            return again
        if once.marked(autograd.nodes_of(outs)):
            return again
        cotangents = [torch.zeros_like(out).requires_grad_() for out in outs]
        reached = [k for k, out in enumerate(outs) if autograd.connected(out)]
        ends, weights = [outs[k] for k in reached], [cotangents[k] for k in reached]
        try:
            slopes = autograd.backward(ends, weights, leaves, True, True) if ends else leaves
        except RuntimeError:  # a function that is differentiable once, and no more
            return again
    linear = [k for k, slope in enumerate(slopes) if slope.requires_grad]

    def push(*moving: Tensor) -> Sequence[Tensor]:
        if not on_tape() and functorch.differentiating():
            return again(*moving)
        if not linear:
            return [torch.zeros_like(out) for out in outs]
        along = [moving[k] for k in linear]
        build = torch.is_grad_enabled() and any([v.requires_grad for v in along])
        return autograd.backward([slopes[k] for k in linear], along, cotangents, True, build)

    return push


@overload
def jacfwd(
    func: Callable[Concatenate[A, P], Tensor],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
    *,
    randomness: str = "error",
) -> Callable[Concatenate[A, P], A]: ...
@overload
def jacfwd(
    func: Callable[Concatenate[A, P], tuple[Tensor, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    randomness: str = "error",
) -> Callable[Concatenate[A, P], tuple[A, Aux]]: ...
@overload
def jacfwd(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
) -> Any: ...
@answered("func.jacfwd", "func.jacfwd(fn, argnums=0)(x)")
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
    what = called("jacfwd", func)
    check_argnums(what, argnums)
    check_flags(what, has_aux=has_aux)
    check_randomness(what, randomness)

    @wraps(func, updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        return jacobian(call, has_aux, forward=True, randomness=randomness)

    return jacobian_of
