"""What an in-place function does to a tensor, where it does the same to each element."""

# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Step", "is_draw", "recorded"]

Step = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""An operator and what follows its first argument."""

_aten = torch.ops.aten
# On the CPU these take their numbers from the generator one after the other: a tensor gets the same
# ones piece by piece. (``normal_`` in groups of 16.) Others skip ahead, or draw in blocks.
_DRAWS = (_aten.uniform_.default, _aten.normal_.default)
_WHOLE = (*_DRAWS, _aten.fill_.Scalar, _aten.zero_.default)  # whatever was there before
_OTHERS = (
    *_WHOLE, _aten.clamp_.default,
    _aten.clamp_min_.default, _aten.clamp_max_.default, _aten.add_.Tensor, _aten.sub_.Tensor,
    _aten.mul_.Tensor, _aten.div_.Tensor,
)  # fmt: skip


class _OtherError(Exception):
    """Something else was done."""


class _Recorder(Tensor):
    """A tensor without memory that keeps what is done to it.

    It is not on the meta device: functions of ``torch.nn.init`` do something else there.
    """

    steps: list[Step]

    @staticmethod
    def __new__(cls, shape: Any, dtype: torch.dtype) -> Any:
        on = torch.device("cpu")
        made: Any = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=on)
        made.steps = []
        return made

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares a method without ``func``
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        target, *others = args
        given = kwargs or {}
        if func not in _OTHERS or any(
            [isinstance(value, Tensor) for value in (*others, *given.values())]
        ):
            raise _OtherError
        target.steps.append((func, tuple(others), given))
        return target


def is_draw(step: Step) -> bool:
    """Whether a step takes numbers from a generator."""
    return step[0] in _DRAWS


def recorded(fill: Callable[[Tensor], Any], shape: Any, dtype: torch.dtype) -> list[Step] | None:
    """The steps of a function that fills a tensor in place.

    It is called with a tensor without memory, and none of its steps runs. What it does beside
    operators of torch, such as a write by numpy, raises there, and the answer is ``None``.

    Returns:
        The steps, of which at most one draws; ``None`` if the function does anything else.
    """
    target = _Recorder(shape, dtype)
    try:
        result = fill(target)
    except Exception:  # a function may fail in any way where a tensor has no numbers
        return None
    steps = target.steps
    if result is not None and result is not target:
        return None
    whole = bool(steps) and steps[0][0] in _WHOLE
    return steps if whole and len(list(filter(is_draw, steps))) <= 1 else None
