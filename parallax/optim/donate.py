"""Whether a step may write into the memory of what it is given."""

from __future__ import annotations

import inspect
from typing import Any

from parallax._compat import dynamo, functorch, in_trace
from parallax._errors.arguments import shown
from parallax.optim.derivatives import being_taken

__all__ = ["check_donation", "check_takes_donation"]


def check_donation(what: str, donate: Any, differentiable: bool = False) -> bool:
    """Raises if ``donate`` is set where memory cannot be reused.

    Returns:
        Whether the step itself writes in place. In a compiled function it does not: there
        ``compile`` gives the memory of its arguments to its results.

    Raises:
        TypeError: if ``donate`` is not a bool.
        ValueError: if it is true in transformed or differentiable code, or in a compiled function
            that is not given anything.
    """
    if donate is False:
        return False
    if donate is not True:
        raise TypeError(
            f"{what}: donate must be True or False, got {shown(donate)}. Write: "
            f"opt.step(model, grads, state, donate=True)"
        )
    traced, reason = dynamo.is_compiling(), ""
    if differentiable:
        reason = "a differentiable step keeps its inputs for the gradient"
    elif traced and not in_trace.allows_donation():
        reason = (
            "a compiled function keeps what it is given. To give it away write "
            "parallax.compile(train, donate=('model', 'state')), with the names of its arguments"
        )
    elif not traced and functorch.transform_active():
        reason = "a torch.func transform is running, whose values cannot be overwritten"
    elif not traced and being_taken():
        reason = "a derivative is being taken, whose graph keeps what the step would overwrite"
    if reason:
        raise ValueError(f"{what}: donate=True cannot be used here: {reason}. Or leave it out")
    return not traced


def check_takes_donation(what: str, opt: Any) -> None:
    """Raises if the step of an optimizer inside of another takes no ``donate``.

    Raises:
        TypeError: with the line to write.
    """
    parameters = inspect.signature(opt.step).parameters.values()
    if not any([p.name == "donate" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters]):
        raise TypeError(
            f"{what}: donate=True is given on to the step of {type(opt).__name__}, which takes no "
            f"donate. Leave it out, or write: def step(self, model, grads, state, *, donate=False)"
        )
