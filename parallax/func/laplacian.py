"""``laplacian`` and ``divergence``: sums of derivatives of each entry, in one pass forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from parallax._errors.arguments import answered
from parallax.func.arguments import called
from parallax.func.call import Call
from parallax.func.results import Result
from parallax.func.signatures import P, R
from parallax.func.taylor import expand, refuse_complex

__all__ = ["divergence", "laplacian"]


@answered("func.laplacian", "func.laplacian(fn, argnums=0)(x)")
def laplacian(func: Callable[P, R], argnums: int | tuple[int, ...] = 0) -> Callable[P, R]:
    """A function that computes the Laplacian of ``func``, the trace of its Hessian.

    It is taken by one pass of ``func`` that carries the value, the derivatives along all entries of
    the argument, and the sum of their second derivatives: collapsed Taylor mode (F. Dangel,
    T. Siebert, M. Zeinhofer, A. Walther, "Collapsing Taylor mode automatic differentiation", 2025),
    also known as the forward Laplacian (R. Li, H. Ye, D. Jiang and others, "A computational
    framework for neural network-based variational Monte Carlo with forward Laplacian", 2024). This
    takes less time and memory than derivatives of derivatives, and no Hessian is made. If ``func``
    calls something whose rule is not known, the Hessian is taken by reverse mode twice, and its
    trace returned: the same numbers, later.

    The result can be differentiated, mapped and compiled. For many points map it:
    ``func.vmap(func.laplacian(u, argnums=1), in_dims=(None, 0))(net, points)``.

    Args:
        func: returns a tensor, a module, or any pytree of them.
        argnums: which positional argument to differentiate, or a tuple of several: the sum goes
            over the entries of all of them.

    Returns:
        A function of the arguments of ``func`` to the Laplacian of each entry of its result: a tree
        of the result's structure and shapes.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated, or the
            argument is complex.
        ValueError: when called, if nothing in the argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.laplacian(lambda x: (x**3).sum())(torch.tensor([1.0, 2.0]))
        tensor(18.)
    """
    what = called("laplacian", func)

    @wraps(func, updated=())
    def laplacian_of(*args: Any, **kwargs: Any) -> Any:
        call = Call(func, what, argnums, args, kwargs)
        refuse_complex(call)
        sums, result, _ = expand("laplacian", call)
        return result.alone(sums)

    return laplacian_of


def divergence(func: Callable[P, Any], argnums: int | tuple[int, ...] = 0) -> Callable[P, Tensor]:
    """A function that computes the divergence of ``func``, the trace of its Jacobian.

    It is taken by one pass of ``func`` that carries the derivatives along all entries of the
    argument, as ``laplacian`` does; the divergence of a gradient is the Laplacian, which costs
    less. Where a rule is not known, the trace of the Jacobian by reverse mode is returned.

    Args:
        func: a vector field: it returns tensors of the shapes of those it is differentiated by.
        argnums: which positional argument to differentiate, or a tuple of several.

    Returns:
        A function of the arguments of ``func`` to a scalar.

    Raises:
        TypeError: when called, if ``func`` returns something that cannot be differentiated, or the
            argument is complex.
        ValueError: when called, if the shapes of argument and result differ, or nothing in the
            argument can be trained.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.divergence(lambda x: x**2)(torch.tensor([1.0, 2.0]))
        tensor(6.)
    """
    what = called("divergence", func)

    @wraps(func, updated=())
    def divergence_of(*args: Any, **kwargs: Any) -> Tensor:
        call = Call(func, what, argnums, args, kwargs)
        refuse_complex(call)

        def check(result: Result) -> None:
            given, got = [[tuple(x.shape) for x in xs] for xs in (call.values, result.values)]
            if given != got:
                raise ValueError(
                    f"{what}: the result must have the shapes of what it is differentiated by, "
                    f"{_listed(given)}, got {_listed(got)}. For a scalar write "
                    f"func.laplacian(f) or func.grad(f); for a Jacobian func.jacrev(f)"
                )

        (found,), _, _ = expand("trace", call, check=check)
        return found

    return divergence_of


def _listed(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes[:5])) + (", ..." if len(shapes) > 5 else "")
