"""``vjp`` and ``jacrev``: derivatives taken backwards from the results."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Literal, overload

from torch import Tensor

from parallax._errors.arguments import answered
from parallax.func.arguments import called, check_argnums, check_chunk_size, check_flags
from parallax.func.call import Argnums, Call
from parallax.func.engines import pullback
from parallax.func.jacobians import jacobian
from parallax.func.results import Taking
from parallax.func.signatures import A, Aux, P, R, Ts

__all__ = ["hessian", "jacrev", "vjp"]


@overload
def vjp(
    func: Callable[[*Ts], R], *primals: *Ts, has_aux: Literal[False] = False
) -> tuple[R, Callable[[R], tuple[*Ts]]]: ...
@overload
def vjp(
    func: Callable[[*Ts], tuple[R, Aux]], *primals: *Ts, has_aux: Literal[True]
) -> tuple[R, Callable[[R], tuple[*Ts]], Aux]: ...
@overload
def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> tuple[Any, ...]: ...
@answered("func.vjp", "func.vjp(fn, x, has_aux=False)")
def vjp(func: Callable[[*Ts], Any], *primals: *Ts, has_aux: bool = False) -> tuple[Any, ...]:
    """The value of ``func`` and its vector-Jacobian product, as ``torch.func.vjp``.

    Args:
        func: takes the primals to a tensor, a module, or any pytree of them.
        *primals: where to evaluate it; modules, tensors, or any pytree that holds them.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.

    Returns:
        ``(result, vjp_fn)``, and ``aux`` as a third if ``has_aux``. ``vjp_fn`` takes cotangents
        in the shape of the result, where a hole means zero, to a tuple with one tree for each
        primal: holes where nothing is differentiated, ties kept and summed.

    Raises:
        TypeError: if the function returns something that cannot be differentiated.
        ValueError: if there is nothing to differentiate with respect to.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> out, pull = func.vjp(torch.sin, torch.zeros(2))
        >>> pull(torch.tensor([1.0, 2.0]))
        (tensor([1., 2.]),)
    """
    what = called("vjp", func)
    check_flags(what, has_aux=has_aux)
    call = Call(func, what, tuple(range(len(primals))), primals, {})
    taking = Taking(what, has_aux)
    values, pull, (others, aux) = pullback(call, taking)
    result = taking.result
    out = result.rebuilt(values, others)

    def vjp_fn(cotangents: Any) -> Any:
        return call.trees(pull(result.beside(cotangents, what, "cotangents")))

    return (out, vjp_fn, aux) if has_aux else (out, vjp_fn)


@overload
def jacrev(
    func: Callable[Concatenate[A, P], Tensor],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[False] = False,
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], A]: ...
@overload
def jacrev(
    func: Callable[Concatenate[A, P], tuple[Tensor, Aux]],
    argnums: Literal[0] = 0,
    *,
    has_aux: Literal[True],
    chunk_size: int | None = None,
) -> Callable[Concatenate[A, P], tuple[A, Aux]]: ...
@overload
def jacrev(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Any: ...
@answered("func.jacrev", "func.jacrev(fn, argnums=0)(x)")
def jacrev(
    func: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """A function that computes the Jacobian of ``func`` row by row, as ``torch.func.jacrev``.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several.
        has_aux: whether ``func`` returns a pair ``(result, aux)``.
        chunk_size: how many rows to compute at once; by default all.

    Returns:
        A function of the arguments of ``func`` to the Jacobian: a tree of the result's structure,
        in the place of each tensor a tree of the argument's structure (a tuple of them if
        ``argnums`` is one), in which a leaf has the shape of the result followed by its own.
        With ``has_aux``, a pair of that and ``aux``.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.jacrev(lambda x: x**2)(torch.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    what = called("jacrev", func)
    check_argnums(what, argnums)
    check_flags(what, has_aux=has_aux)
    check_chunk_size(what, chunk_size)
    return _jacrev_as(what, func, argnums, has_aux=has_aux, chunk_size=chunk_size)


def _jacrev_as(
    what: str,
    func: Callable[..., Any],
    argnums: Argnums,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """``jacrev`` under another name for error messages."""

    @wraps(func, updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        return jacobian(call, has_aux, chunk_size=chunk_size)

    return jacobian_of


@answered("func.hessian", "func.hessian(fn, argnums=0)(x)")
def hessian(func: Callable[P, Any], argnums: int | tuple[int, ...] = 0) -> Callable[P, Any]:
    """A function that computes the Hessian of ``func``, as ``torch.func.hessian``.

    Reverse mode twice, where torch goes forward over reverse: that is wrong by far for some
    functions under ``vmap`` (``slogdet``), and not there for others (``mse_loss``).

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
    what = called("hessian", func)
    check_argnums(what, argnums)
    return _jacrev_as(what, _jacrev_as(what, func, argnums), argnums)
