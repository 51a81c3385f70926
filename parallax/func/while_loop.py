"""``while_loop`` and ``fori_loop``: loops that carry trees along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from parallax._compat import dynamo, flow, functorch
from parallax._errors.arguments import answered
from parallax.func.arguments import name_of, short
from parallax.func.cond import check_pred
from parallax.func.framed import check_functions, fitted, framed
from parallax.func.results import describe
from parallax.func.scan import scan_as
from parallax.func.signatures import Carried, T
from parallax.random.marks import carry_on

__all__ = ["fori_loop", "while_loop"]


@overload
def while_loop(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., tuple[Any, ...]],
    carried_inputs: Carried,
) -> Carried: ...
@overload
def while_loop(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., tuple[Any, ...]],
    carried_inputs: Sequence[Any],
) -> tuple[Any, ...]: ...
@answered("func.while_loop", "func.while_loop(cond_fn, body_fn, (x,))")
def while_loop(
    cond_fn: Callable[..., Any],
    body_fn: Callable[..., tuple[Any, ...]],
    carried_inputs: Sequence[Any],
) -> tuple[Any, ...]:
    """Calls ``body_fn(*carried)`` as long as ``cond_fn(*carried)`` is true.

    As torch's ``while_loop``, with modules and any tree for what is carried. In eager code it is a
    ``while``, which can be differentiated; in compiled code both functions are traced once, and
    there is no reverse-mode derivative, as the number of passes is not known. Under ``vmap`` the
    loop goes on until all members are done, and those that are keep what they carry.

    Args:
        cond_fn: takes what is carried to a bool, or a tensor of one bool.
        body_fn: takes what is carried to a tuple of the next, of the same structure, shapes and
            dtypes.
        carried_inputs: what is carried first, as a tuple.

    Returns:
        What is carried last, as a tuple.

    Raises:
        NotImplementedError: if the result of a compiled loop could be differentiated.
        TypeError: if the functions return something else, or a leaf is no tensor.
        ValueError: if what is carried changes its structure, shapes or dtypes; the message names
            the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.while_loop(lambda x: x < 10, lambda x: (2 * x,), (torch.tensor(3),))
        (tensor(12),)
    """
    check_functions("func.while_loop", cond_fn=cond_fn, body_fn=body_fn)
    what = f"func.while_loop({name_of(cond_fn)}, {name_of(body_fn)})"
    if not isinstance(carried_inputs, (tuple, list)):
        raise TypeError(
            f"{what}: carried_inputs must be a tuple, got {short(carried_inputs)}. "
            f"For one value write (value,)"
        )
    loop = _Loop(cond_fn, body_fn, tuple(carried_inputs), what)
    return loop.traced() if dynamo.is_compiling() else loop.plain()


class _Loop:
    """One call of ``while_loop``."""

    __slots__ = ("body_fn", "cond_fn", "first", "frame", "tensors", "what")

    def __init__(self, cond_fn: Any, body_fn: Any, first: tuple[Any, ...], what: str) -> None:
        self.cond_fn = cond_fn
        self.body_fn = body_fn
        self.first = first
        self.what = what
        self.tensors, self.frame = framed(first, what, "carried_inputs")

    def goes_on(self, carried: Sequence[Any]) -> Any:
        """Whether there is a next pass."""
        found = self.cond_fn(*carried)
        check_pred(found, self.what, "what cond_fn returns")
        return found

    def step(self, carried: Sequence[Any]) -> tuple[tuple[Any, ...], list[Tensor]]:
        """What is carried next, and its tensors."""
        found = self.body_fn(*carried)
        if not isinstance(found, tuple) or len(found) != len(self.first):
            raise TypeError(
                f"{self.what}: body_fn returns a tuple of the next {len(self.first)} values, got "
                f"{describe(found)}. Write for one: return (value,)"
            )
        role = "what body_fn returned"
        return found, fitted(found, self.first, self.tensors, self.frame, self.what, role)

    def plain(self) -> tuple[Any, ...]:
        """The loop, pass by pass."""
        carried, tensors = self.first, self.tensors
        while True:
            again = self.goes_on(carried)
            if isinstance(again, Tensor) and functorch.is_mapped_within(again):
                if not functorch.innermost(again).any():
                    return carried
                pairs = zip(self.step(carried)[1], tensors, strict=True)
                tensors = [torch.where(again, new, old) for new, old in pairs]
                carried = self.frame.build(tensors)
            elif again:
                carried, tensors = self.step(carried)
            else:
                return carried

    def traced(self) -> tuple[Any, ...]:
        """The loop as one operator, while dynamo traces."""

        def goes_on(*tensors: Tensor) -> tuple[Any, Any]:
            again = self.goes_on(self.frame.build(tensors))
            return ((again.clone() if isinstance(again, Tensor) else torch.tensor(again)),), None

        def body(*tensors: Tensor) -> tuple[Any, Any]:
            _, found = self.step(self.frame.build(tensors))
            carry_on(tensors, found)
            return tuple([tensor.clone() for tensor in found]), None

        found, _, _ = flow.while_loop(goes_on, body, self.tensors)
        if any([tensor.requires_grad for tensor in found]):
            raise NotImplementedError(
                f"{self.what}: a compiled loop cannot be differentiated, as the number of its "
                f"passes is not known. Use func.fori_loop or func.scan; or call it within "
                f"torch.no_grad(), with what goes in detached: x.detach()"
            )
        return self.frame.build(found)  # type: ignore[no-any-return]  # a tuple


@answered("func.fori_loop", "func.fori_loop(0, 10, body_fun, init_val)")
def fori_loop(lower: int, upper: int, body_fun: Callable[[Tensor, T], T], init_val: T) -> T:
    """Calls ``value = body_fun(i, value)`` for each ``i`` from ``lower`` to ``upper - 1``.

    As ``jax.lax.fori_loop``. It is ``func.scan`` without results, and has its derivatives.

    Args:
        lower: the first number.
        upper: the number at which the loop ends.
        body_fun: takes a number, as an integer tensor of no dimension, and the value to the next
            value, of the same structure, shapes and dtypes.
        init_val: the first value: a module, or any tree of tensors.

    Returns:
        The last value; the first one if there is no number to loop over.

    Raises:
        TypeError: if a bound is no int, or ``body_fun`` no function.
        ValueError: if the value changes its structure, shapes or dtypes; the message names the
            path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> func.fori_loop(0, 4, lambda i, total: total + i, torch.tensor(0))
        tensor(6)
    """
    check_functions("func.fori_loop", body_fun=body_fun)
    what = f"func.fori_loop({name_of(body_fun)})"
    bounds: dict[str, Any] = {"lower": lower, "upper": upper}
    for name, bound in bounds.items():
        if not isinstance(bound, int) or isinstance(bound, bool):
            raise TypeError(
                f"{what}: {name} must be an int, got {short(bound)}. For a bound that is a tensor "
                f"write a loop with a counter: func.while_loop(lambda i, x: i < n, ...)"
            )
    framed(init_val, what, "init_val")
    if upper <= lower:
        return init_val

    def step(value: T, number: Tensor) -> tuple[T, None]:
        return body_fun(number, value), None

    value: T = scan_as(what, step, init_val, torch.arange(lower, upper))[0]
    return value
