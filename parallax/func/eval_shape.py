"""``eval_shape``: what a function would return, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from parallax._compat import dynamo
from parallax._errors.arguments import answered, check_function
from parallax.core.nodes import is_module
from parallax.func.signatures import P, R
from parallax.tree.standins import StandIns, outlined

__all__ = ["eval_shape"]


@answered("func.eval_shape", "func.eval_shape(fn, x)")
def eval_shape(func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """The shapes and dtypes of what ``func`` returns, found without computing it.

    The function runs on stand-ins for tensors, so it allocates nothing and takes no numbers: in the
    time of its Python, for a model of any size. Modules need not be initialized. Nothing is drawn,
    and no key is used up.

    Args:
        func: any function, or a module; also one with transforms in it, such as a gradient.
        *args: its arguments: modules, tensors or any trees. A tensor on the meta device stands for
            one on the device of the others.
        **kwargs: arguments by name.

    Returns:
        What the function returns, with tensors on the meta device: of its shapes, strides and
        dtypes, without a graph. They can be given to ``eval_shape`` again. Modules hold no rng.

    Raises:
        RuntimeError: if the function looks at numbers (``float(x)``, ``if x > 0``), or the shape of
            a result depends on them (``torch.nonzero``); or within compiled code.
        TypeError: if ``func`` is not a function.

    Example:
        >>> import torch
        >>> from parallax import func, nn
        >>> wide = nn.Linear(100_000, 100_000)  # 40 GB, if it was initialized
        >>> y = func.eval_shape(wide, torch.empty(8, 100_000, device="meta"))
        >>> y.shape, y.dtype
        (torch.Size([8, 100000]), torch.float32)
        >>> grads = func.eval_shape(func.grad(lambda net, x: net(x).sum()), wide, y)
        >>> grads.bias.shape
        torch.Size([100000])
    """
    check_function("func.eval_shape", func, "func.eval_shape(loss, model, x)", "func")
    if dynamo.is_compiling():
        raise RuntimeError(
            "func.eval_shape: in compiled code shapes are known without it. Write f(x).shape, or "
            "call eval_shape outside and give the compiled function what it says"
        )
    model = func if is_module(func) else None
    stand_ins = StandIns(model, args, kwargs)
    run: Any = func if model is None else stand_ins.of(model)
    given, named = stand_ins.of(args), stand_ins.of(kwargs)
    with stand_ins.running("func.eval_shape"):
        out = run(*given, **named)
    return outlined(out)  # type: ignore[no-any-return]  # of the same structure
