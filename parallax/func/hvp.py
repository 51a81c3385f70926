"""``hvp``: products of the Hessian with a vector, without the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from parallax import tree
from parallax.func.call import call_at
from parallax.func.forward import tangents_of
from parallax.func.grad import grad, grad_and_value, scalar_and_aux
from parallax.func.moving import name_of

__all__ = ["hvp"]


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
    what = f"func.hvp({name_of(func)})"
    along = tangents_of(call_at(func, what, primals), tangents, what)
    everything = tuple(range(len(primals)))

    def checked(*inner: Any) -> tuple[Tensor, Any]:
        return scalar_and_aux(func(*inner), what, has_aux)

    def slope(*inner: Any) -> tuple[Tensor, Any]:
        grads, beside = grad_and_value(checked, everything, has_aux=True)(*inner)
        return _inner_product(tree.leaves(grads), along), beside

    product, (value, aux) = grad(slope, everything, has_aux=True)(*primals)
    return (value, product, aux) if has_aux else (value, product)


def _inner_product(one: Sequence[Tensor], two: Sequence[Tensor]) -> Tensor:
    """The real inner product of two lists of tensors."""
    terms = [
        (a.conj() * b).real.sum() if a.is_complex() else (a * b).sum()
        for a, b in zip(one, two)  # noqa: B905  # dynamo traces no strict=
    ]
    return sum(terms[1:], start=terms[0])
