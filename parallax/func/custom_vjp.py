"""``custom_vjp``: a function whose derivative in reverse mode is written by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Generic

from parallax._compat import dynamo
from parallax._errors.arguments import answered
from parallax.func.applied import apply, is_deep
from parallax.func.arguments import called
from parallax.func.custom_rules import Rule
from parallax.func.framed import check_functions
from parallax.func.nondiff_argnums import Arguments
from parallax.func.reached import Reached
from parallax.func.signatures import R

__all__ = ["custom_vjp"]


class custom_vjp(Generic[R]):  # noqa: N801  # called like a function, as in JAX
    """A function whose derivative in reverse mode is written by hand, as ``jax.custom_vjp``.

    Arguments, results and residuals may be modules or any tree of tensors. A tensor that the
    function captures has no derivative, and is refused where it is differentiated: pass it.
    Derivatives of higher order go through ``bwd``, and through ``fwd`` as far as its residuals
    reach. All transforms but those of forward mode work, and compiled code; effects and keys are
    those of one call.

    Args:
        fun: the function; eager code calls it where no derivative is taken.
        nondiff_argnums: which positional arguments are no trees of tensors, or are not
            differentiated: they go to ``fwd`` in their places, and to ``bwd`` first.

    Raises:
        TypeError: if ``fun`` is no function or ``nondiff_argnums`` no tuple of ints; when called,
            if an argument holds something else than tensors and ``None``, or if the function
            captures what is differentiated.
        ValueError: when differentiated, if a cotangent does not fit its argument; the message
            names the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> @func.custom_vjp
        ... def clipped_gradient(x):
        ...     return x
        >>> clipped_gradient.defvjp(lambda x: (x, None), lambda _, g: (g.clamp(-1, 1),))
        >>> func.grad(lambda x: 5 * clipped_gradient(x))(torch.tensor(2.0))
        tensor(1.)
    """

    @answered("func.custom_vjp", "f = func.custom_vjp(f); f.defvjp(fwd, bwd)")
    def __init__(self, fun: Callable[..., R], nondiff_argnums: int | tuple[int, ...] = ()) -> None:
        self._what = called("custom_vjp", fun)
        given: Any = nondiff_argnums
        if callable(given):
            raise TypeError(
                f"{self._what}: takes one function, and its derivative comes after it. Write "
                f"f = func.custom_vjp(f); f.defvjp(fwd, bwd)"
            )
        self._arguments = Arguments(nondiff_argnums, self._what)
        self._fun = fun
        self._rule: tuple[Callable[..., tuple[R, Any]], Callable[..., Any]] | None = None
        update_wrapper(self, fun, updated=())

    @answered("defvjp", "f.defvjp(fwd, bwd)")
    def defvjp(self, fwd: Callable[..., tuple[R, Any]], bwd: Callable[..., Any]) -> None:
        """Says what the derivative is.

        Args:
            fwd: takes the arguments of the function to its result and residuals: a tree of
                tensors that ``bwd`` needs, or ``None``.
            bwd: takes the arguments of ``nondiff_argnums``, the residuals and the cotangent of the
                result to a tuple with one for each other argument: a tree like it, with ``None``
                for what has none.

        Raises:
            TypeError: if one is no function.
        """
        check_functions(f"{self._what}.defvjp", fwd=fwd, bwd=bwd)
        self._rule = fwd, bwd
        self._reached = Reached(fwd, bwd)

    def __call__(self, *args: Any) -> R:
        """The result, differentiable by the rule."""
        if self._rule is None:
            raise TypeError(
                f"{self._what}: it has no rule yet. Give it one: f.defvjp(fwd, bwd), where fwd "
                f"returns (result, residuals) and bwd a tuple of cotangents"
            )
        if dynamo.is_compiling() and is_deep():
            return self._fun(*args)
        fwd, bwd = self._rule
        if self._arguments.argnums:
            rule = self._called(fwd, bwd, args)
        else:  # the usual case, with less
            rule = Rule(fwd, bwd, args, self._what, None, self._reached)
        found: R = apply(rule, rule.open(), self._fun, args)
        return found

    def _called(self, fwd: Callable[..., Any], bwd: Callable[..., Any], args: Any) -> Rule:
        """The rule of a call in which some arguments are not differentiated."""
        given = self._arguments.split(args)
        return Rule(
            lambda *moving: fwd(*given.around(moving)),
            lambda kept, cotangent: bwd(*given.still, kept, cotangent),
            given.moving,
            self._what,
            reached=self._reached,
        )
