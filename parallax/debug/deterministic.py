"""``deterministic``: does a function repeat itself?"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from parallax import random
from parallax._errors.arguments import answered, check_function
from parallax.debug.bits import same_bits
from parallax.debug.calls import leaves_of, name_of
from parallax.debug.pure import ImpureError
from parallax.effects.running import refuse_deferred

__all__ = ["deterministic"]

P = ParamSpec("P")
R = TypeVar("R")


@answered("debug.deterministic", "debug.deterministic(fn)(model, x)")
def deterministic(fn: Callable[P, R]) -> Callable[P, R]:
    """Checks that a function returns the same bits when it is run twice.

    Args:
        fn: any function of modules, tensors and pytrees of them. Keys may be used by both runs.

    Returns:
        A function that runs ``fn`` twice and returns the first result.

    Raises:
        ImpureError: if the results differ; the message names the first leaf that does.
        TypeError: if ``fn`` returns a coroutine or a generator, which would run after the check.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> debug.deterministic(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
    """
    check_function("debug.deterministic", fn, "debug.deterministic(loss)(model, x)")

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        with random.reuse():
            one = fn(*args, **kwargs)
            refuse_deferred(one, "debug.deterministic")
            two = fn(*args, **kwargs)
        first, second = dict(leaves_of(one)), dict(leaves_of(two))
        for path in {**first, **second}:
            if path not in first or path not in second or not _equal(first[path], second[path]):
                where = f" at {path}" if path else ""
                raise ImpureError(
                    f"{name_of(fn)}() is not deterministic: two runs on the same arguments differ"
                    f"{where}. Look for draws without a key, and for operators that "
                    f"torch.use_deterministic_algorithms(True) names"
                )
        return one

    return checked


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return same_bits(one.detach(), two.detach())
    return type(one) is type(two) and bool(one == two or one != one)  # noqa: PLR0124  # nan
