"""L-BFGS."""

from __future__ import annotations

import torch

from parallax.optim.arguments import check_at_least, check_kind
from parallax.optim.foreign import Foreign

__all__ = ["LBFGS"]


def LBFGS(  # noqa: N802  # as in torch.optim
    lr: float = 1,
    max_iter: int = 20,
    max_eval: int | None = None,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
    history_size: int = 100,
    line_search_fn: str | None = None,
) -> Foreign:
    """L-BFGS: steps along an estimate of the inverse Hessian; for full batches.

    As ``torch.optim.LBFGS``, and its code. ``step(model, closure, state)`` takes a function of a
    model to ``(grads, loss)``, which it calls several times. A key that the function uses gives it
    the same numbers every time within a step.

    Args:
        lr: learning rate.
        max_iter: the most iterations per step.
        max_eval: the most calls of the closure per step; by default 1.25 times ``max_iter``.
        tolerance_grad: stop when the largest gradient is this small.
        tolerance_change: stop when model or loss change this little.
        history_size: how many updates are remembered.
        line_search_fn: ``"strong_wolfe"`` or ``None``.

    Returns:
        The optimizer.

    Raises:
        ValueError: if torch refuses a value, a negative learning rate say.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.LBFGS(), Point(torch.tensor([2.0]))
        >>> loss = func.grad_and_value(lambda p: ((p.at - 1) ** 2).sum())
        >>> opt.step(point, loss, opt.init(point))[0].at
        tensor([1.])
    """
    for name, value, kind, example in (
        ("lr", lr, "float", 1.0),
        ("max_iter", max_iter, "int", 20),
        ("max_eval", max_eval, "int | None", 25),
        ("tolerance_grad", tolerance_grad, "float", 1e-7),
        ("tolerance_change", tolerance_change, "float", 1e-9),
        ("history_size", history_size, "int", 100),
    ):
        check_kind("optim.LBFGS", name, value, kind, example)
        if name != "lr":  # which torch checks
            check_at_least("optim.LBFGS", name, value, 0)
    if line_search_fn not in (None, "strong_wolfe"):
        raise ValueError(
            f"optim.LBFGS: line_search_fn must be 'strong_wolfe' or None, got {line_search_fn!r}. "
            f"Write optim.LBFGS(line_search_fn='strong_wolfe')"
        )
    hyper = {
        "lr": lr, "max_iter": max_iter, "max_eval": max_eval, "tolerance_grad": tolerance_grad,
        "tolerance_change": tolerance_change, "history_size": history_size,
        "line_search_fn": line_search_fn,
    }  # fmt: skip
    try:
        torch.optim.LBFGS([torch.zeros(1)], **hyper)  # type: ignore[arg-type]  # named one by one
    except ValueError as error:
        raise ValueError(f"optim.LBFGS: {error}") from None
    return Foreign(torch.optim.LBFGS, True, hyper)
