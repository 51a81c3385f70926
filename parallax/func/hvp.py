"""``hvp``: products of the Hessian with a vector, without the Hessian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from torch import Tensor

from parallax import tree
from parallax._errors.arguments import answered
from parallax.func.arguments import called, check_flags
from parallax.func.call import call_at
from parallax.func.engines import pullback
from parallax.func.forward import tangents_of
from parallax.func.grad import grad_and_value, scalar_and_aux
from parallax.func.signatures import Aux, R, Ts

__all__ = ["hvp"]


@overload
def hvp(
    func: Callable[[*Ts], R],
    primals: tuple[*Ts],
    tangents: tuple[*Ts],
    *,
    has_aux: Literal[False] = False,
) -> tuple[R, tuple[*Ts]]: ...
@overload
def hvp(
    func: Callable[[*Ts], tuple[R, Aux]],
    primals: tuple[*Ts],
    tangents: tuple[*Ts],
    *,
    has_aux: Literal[True],
) -> tuple[R, tuple[*Ts], Aux]: ...
@overload
def hvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: bool = False,
) -> tuple[Any, ...]: ...
@answered("func.hvp", "func.hvp(fn, (x,), (tangent,))")
def hvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
    *,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """The value of ``func`` and the product of its Hessian with ``tangents``.

    Reverse mode twice (Pearlmutter, "Fast exact multiplication by the Hessian", 1994), at about
    twice the cost of a gradient; every operator that has a second derivative is supported.

    Args:
        func: takes the primals to a scalar.
        primals: a tuple of where to evaluate it; modules, tensors, or pytrees that hold them.
        tangents: a tuple of the same structure; a hole means zero. What stands beside leaves that
            are not differentiated (buffers, frozen ones) is not read.
        has_aux: whether ``func`` returns a pair ``(loss, aux)``.

    Returns:
        ``(value, product)``, and ``aux`` as a third if ``has_aux``; the product is a tuple with
        one tree for each primal, as the tangents are.

    Raises:
        TypeError: if ``func`` does not return a scalar, or primals or tangents are no tuple.
        ValueError: if the tangents do not fit the primals; the message names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> value, (product,) = func.hvp(lambda x: x**3, (torch.tensor(2.0),), (torch.tensor(1.0),))
        >>> product
        tensor(12.)
    """
    what = called("hvp", func)
    check_flags(what, has_aux=has_aux)
    along = tangents_of(call_at(func, what, primals), tangents, what)

    def checked(*inner: Any) -> tuple[Tensor, Any]:
        return scalar_and_aux(func(*inner), what, has_aux)

    slopes = grad_and_value(checked, tuple(range(len(primals))), has_aux=True)
    call = call_at(slopes, what, primals)
    # The Hessian is symmetric: a product with it is that of the gradient's pullback.
    _, pull, (value, aux) = pullback(call, lambda found: (tree.leaves(found[0]), found[1]))
    product = call.trees(pull(along))
    return (value, product, aux) if has_aux else (value, product)
