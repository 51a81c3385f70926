"""``grad`` and ``grad_and_value``: gradients of scalars, as trees."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Literal, overload

from torch import Tensor

from parallax._errors.arguments import answered
from parallax.func.arguments import called, check_argnums, check_flags
from parallax.func.call import Argnums, Call
from parallax.func.engines import gradient
from parallax.func.results import describe, with_aux
from parallax.func.signatures import Aux, G, Like, LikeAnd, P, R

__all__ = ["grad", "grad_and_value", "grad_as", "scalar_and_aux"]


@overload
def grad(
    func: Callable[Concatenate[G, P], Any],
    argnums: Literal[0] = 0,
    has_aux: Literal[False] = False,
) -> Like[G, P]: ...
@overload
def grad(
    func: Callable[Concatenate[G, P], tuple[Any, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
) -> LikeAnd[G, P, Aux]: ...
@overload
def grad(
    func: Callable[P, Any], argnums: int | tuple[int, ...], has_aux: bool = False
) -> Callable[P, Any]: ...
@answered("func.grad", "func.grad(loss, argnums=0, has_aux=False)(model, x)")
def grad(
    func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that computes the gradient of ``func``, which returns a scalar.

    As ``torch.func.grad``, and arguments may be modules or any pytree that holds them. In a module
    the floating and complex ``Parameter`` leaves that are not frozen are differentiated; outside
    of modules, every tensor of the argument. A leaf on which the result does not depend gets
    zeros. With no transform around it, it runs on autograd's tape: ``torch.utils.checkpoint``,
    hooks and custom autograd functions work, and it costs no more than ``loss.backward()``.

    Args:
        func: returns a tensor of no dimension, or a pair of one and anything if ``has_aux``.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.

    Returns:
        A function of the arguments of ``func`` to a gradient: a tree of the argument's structure
        with holes (``None``) where nothing is differentiated, ties kept and summed; a tuple of
        such trees if ``argnums`` is one; a pair of that and ``aux`` if ``has_aux``. The gradient of
        a distributed leaf (``DTensor``) has its placements.

    Raises:
        RuntimeError: when called, if ``func`` uses a loss on sharded tensors whose gradient torch
            scales (``F.mse_loss`` and four others with ``reduction="mean"``); it says the remedy.
        TypeError: when called, if ``func`` does not return a scalar, or a differentiated argument
            holds what cannot be.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func
        >>> class Point(Module):
        ...     at: Parameter
        >>> func.grad(lambda p: (p.at**2).sum())(Point(torch.tensor([1.0, 2.0]))).at
        tensor([2., 4.])
    """
    what = called("grad", func)
    check_argnums(what, argnums)
    return grad_as(what, func, argnums, has_aux)


def grad_as(
    what: str, func: Callable[..., Any], argnums: Argnums, has_aux: bool = False
) -> Callable[..., Any]:
    """``grad`` under another name for error messages."""
    check_flags(what, has_aux=has_aux)

    def finish(result: Any) -> tuple[Tensor, Any]:
        return scalar_and_aux(result, what, has_aux)

    @wraps(func, updated=())
    def gradient_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        grads, _, aux = gradient(call, finish)
        return (call.trees(grads), aux) if has_aux else call.trees(grads)

    return gradient_of


@overload
def grad_and_value(  # type: ignore[overload-overlap]  # more is known where argnums is 0
    func: Callable[Concatenate[G, P], R], argnums: Literal[0] = 0, has_aux: bool = False
) -> LikeAnd[G, P, R]: ...
@overload
def grad_and_value(
    func: Callable[P, R], argnums: int | tuple[int, ...], has_aux: bool = False
) -> Callable[P, tuple[Any, R]]: ...
@answered("func.grad_and_value", "func.grad_and_value(loss, argnums=0, has_aux=False)(model, x)")
def grad_and_value(
    func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that computes the gradient of ``func`` and its value.

    Args:
        func: returns a tensor of no dimension, or a pair of one and anything if ``has_aux``.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.

    Returns:
        A function of the arguments of ``func`` to ``(gradient, value)``, or to
        ``(gradient, (value, aux))`` if ``has_aux``: the order of ``torch.func.grad_and_value``.

    Raises:
        TypeError: as ``grad``.
        ValueError: as ``grad``.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.grad_and_value(lambda x: x**2)(torch.tensor(3.0))
        (tensor(6.), tensor(9.))
    """
    what = called("grad_and_value", func)
    check_argnums(what, argnums)
    check_flags(what, has_aux=has_aux)

    def finish(result: Any) -> tuple[Tensor, Any]:
        return scalar_and_aux(result, what, has_aux)

    @wraps(func, updated=())
    def gradient_and_value_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        grads, value, aux = gradient(call, finish)
        return call.trees(grads), (value, aux) if has_aux else value

    return gradient_and_value_of


def scalar_and_aux(result: Any, what: str, has_aux: bool) -> tuple[Tensor, Any]:
    """The loss and what was returned beside it.

    Raises:
        TypeError: if the loss is no real, floating scalar.
    """
    loss, aux = with_aux(result, what, has_aux) if has_aux else (result, None)
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.dtype.is_floating_point:
        return loss, aux
    raise TypeError(f"{what}: {_not_scalar(loss)}")


def _not_scalar(loss: Any) -> str:
    if loss is None:
        return "the function returned nothing. End it with: return loss"
    if not isinstance(loss, Tensor):
        hint = ", or pass has_aux=True to return (loss, aux)" if type(loss) is tuple else ""
        if isinstance(getattr(loss, "loss", None), Tensor):
            hint = ": its .loss; and with has_aux=True also: return out.loss, out"
        return f"the function returned {describe(loss)}. Return one scalar tensor{hint}"
    if loss.dim():
        return (
            f"the function returned a tensor of shape {tuple(loss.shape)}, and only a scalar has a "
            f"gradient. Reduce it: loss.mean(); or use func.jacrev for a gradient per entry"
        )
    if loss.dtype.is_complex:
        return (
            f"the function returned a {loss.dtype} scalar. Return a real one: loss.real, loss.abs()"
        )
    return (
        f"the function returned a {loss.dtype} scalar, which has no gradient. Return a float loss"
    )
