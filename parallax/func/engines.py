"""The two engines behind every reverse-mode derivative, and which of them a call gets.

*tape*: detach the leaves, run, ask autograd's tape. As fast and as lean as ``loss.backward()``.
*functorch*: ``torch.func``. Inside another transform, while dynamo traces and in inference mode
the tape cannot be used, or would cost exactness.

Both mean what ``torch.func.grad`` means.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parallax import random
from parallax._compat import autograd, modes, sharding_rules
from parallax.func.call import Call
from parallax.func.distributed_errors import note_distributed
from parallax.func.tape import gradient_by_tape, pullback_by_tape
from parallax.func.transforms import Finish, Pullback, gradient_by_functorch, pullback_by_functorch
from parallax.func.underivable import refuse_what_has_no_derivative

__all__ = ["gradient", "on_tape", "pullback"]


def on_tape() -> bool:
    """Whether the tape gives what ``torch.func`` would, here."""
    return modes.tape_is_exact()


def gradient(call: Call, finish: Finish) -> tuple[list[Tensor], Tensor, Any]:
    """The gradient of a scalar.

    Args:
        call: the function, and the leaves to differentiate with respect to.
        finish: takes what the function returned to a scalar and something beside it.

    Returns:
        One gradient per leaf, the scalar, and what came beside it.
    """
    sharding_rules.complete()
    if not on_tape():
        return gradient_by_functorch(call, finish)
    refuse_what_has_no_derivative()
    try:
        return gradient_by_tape(call, finish)
    except RuntimeError as error:
        if not autograd.is_inference_refusal(error):
            note_distributed(error, call.args)
            raise
    # A tensor was made in inference mode, which shows only when the tape meets it.
    with random.reuse():
        return gradient_by_functorch(call, finish)


def pullback(call: Call, finish: Finish) -> tuple[list[Tensor], Pullback, Any]:
    """Values and the function from their cotangents to those of the leaves.

    Args:
        call: the function, and the leaves to differentiate with respect to.
        finish: takes what the function returned to a list of tensors and something beside it.

    Returns:
        The tensors, the pullback (to be called as often as wanted), and what came beside.
    """
    sharding_rules.complete()
    if not on_tape():
        return pullback_by_functorch(call, finish)
    refuse_what_has_no_derivative()
    try:
        return pullback_by_tape(call, finish)
    except RuntimeError as error:
        if not autograd.is_inference_refusal(error):
            note_distributed(error, call.args)
            raise
    with random.reuse():
        return pullback_by_functorch(call, finish)
