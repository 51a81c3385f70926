"""``custom_jvp``: a function whose derivative is written by hand, for both modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import update_wrapper
from typing import Any, Generic

import torch
from torch import Tensor

from parallax._compat import dynamo
from parallax._errors.arguments import answered
from parallax.func.applied import apply, is_deep
from parallax.func.arguments import called
from parallax.func.custom_rules import Rule
from parallax.func.differentiated import is_inexact
from parallax.func.framed import check_functions, fitted, framed
from parallax.func.nondiff_argnums import Arguments, Given
from parallax.func.reached import Reached
from parallax.func.results import describe
from parallax.func.signatures import R

__all__ = ["custom_jvp"]


class custom_jvp(Generic[R]):  # noqa: N801  # called like a function, as in JAX
    """A function whose derivative is written by hand, as ``jax.custom_jvp``.

    The rule is that of forward mode, linear in the tangents; reverse mode transposes it. Arguments
    and results may be modules or any tree of tensors. A tensor that the function captures has no
    derivative, and is refused where it is differentiated: pass it. Compiled code has reverse mode
    only.

    Args:
        fun: the function.
        nondiff_argnums: which positional arguments are no trees of tensors, or are not
            differentiated: they go to the rule first.

    Raises:
        TypeError: if ``fun`` is no function or ``nondiff_argnums`` no tuple of ints; when called,
            if an argument holds something else than tensors and ``None``, or if the function
            captures what is differentiated.
        ValueError: when differentiated, if the tangent does not fit the result; the message names
            the path.

    Example:
        >>> import torch
        >>> from parallax import func
        >>> @func.custom_jvp
        ... def straight_through(x):
        ...     return x.round()
        >>> straight_through.defjvp(lambda primals, tangents: (primals[0].round(), tangents[0]))
        >>> func.grad(straight_through)(torch.tensor(0.7))
        tensor(1.)
    """

    @answered("func.custom_jvp", "f = func.custom_jvp(f); f.defjvp(jvp)")
    def __init__(self, fun: Callable[..., R], nondiff_argnums: int | tuple[int, ...] = ()) -> None:
        self._what = called("custom_jvp", fun)
        given: Any = nondiff_argnums
        if callable(given):
            raise TypeError(
                f"{self._what}: takes one function, and its derivative comes after it. Write "
                f"f = func.custom_jvp(f); f.defjvp(jvp)"
            )
        self._arguments = Arguments(nondiff_argnums, self._what)
        self._fun = fun
        self._jvp: Callable[..., tuple[R, R]] | None = None
        update_wrapper(self, fun, updated=())

    @answered("defjvp", "f.defjvp(jvp)")
    def defjvp(self, jvp: Callable[..., tuple[R, R]]) -> None:
        """Says what the derivative is.

        Args:
            jvp: takes the arguments of ``nondiff_argnums``, a tuple of the other arguments and a
                tuple of their tangents (with ``None`` for what has none) to a pair of the result
                and its tangent, a tree like it.

        Raises:
            TypeError: if it is no function.
        """
        check_functions(f"{self._what}.defjvp", jvp=jvp)
        self._jvp = jvp
        self._reached = Reached(self._fun, jvp)

    def __call__(self, *args: Any) -> R:
        """The result, differentiable by the rule."""
        if self._jvp is None:
            raise TypeError(
                f"{self._what}: it has no rule yet. Give it one: f.defjvp(jvp), where jvp takes "
                f"(primals, tangents) to (result, tangent)"
            )
        if dynamo.is_compiling() and is_deep():
            return self._fun(*args)
        given = self._arguments.split(args)
        linear = _Linear(self._jvp, given, self._what)
        rule = Rule(
            lambda *moving: (self._fun(*given.around(moving)), moving),
            linear.transposed,
            given.moving,
            self._what,
            linear.push,
            self._reached,
        )
        linear.rule = rule
        found: R = apply(rule, rule.open(), lambda: self._fun(*args))
        return found


class _Linear:
    """The rule at one point, as a function of tangents."""

    __slots__ = ("given", "jvp", "rule", "what")

    rule: Rule

    def __init__(self, jvp: Callable[..., tuple[Any, Any]], given: Given, what: str) -> None:
        self.jvp = jvp
        self.given = given
        self.what = what

    def at(self, tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        """The tangents of the tensors of the result that have one."""
        rule = self.rule
        primals, moved = tuple(rule.around(tensors)), tuple(rule.around(tangents))
        found = self.jvp(*self.given.still, primals, moved)
        if type(found) is not tuple or len(found) != 2:
            raise TypeError(
                f"{self.what}: jvp returns a pair (result, tangent), got {describe(found)}. "
                f"Return two things: return out, tangent"
            )
        out, tangent = found
        outs, frame = framed(out, self.what, "the result")
        role = "the tangent of the result"
        return fitted(tangent, out, outs, frame, self.what, role)

    def transposed(self, kept: Any, cotangent: Any) -> tuple[Any, ...]:
        """The cotangents of the arguments."""
        tensors = [x for tree in kept for x in framed(tree, self.what, "an argument")[0]]
        places = [k for k, x in enumerate(tensors) if is_inexact(x)]
        ends, _ = framed(cotangent, self.what, "the cotangent")

        def moved(*tangents: Tensor) -> list[Tensor]:
            found: list[Tensor | None] = [None] * len(tensors)
            for place, tangent in zip(places, tangents, strict=True):
                found[place] = tangent
            return [x for x in self.at(tensors, found) if is_inexact(x)]

        pull: Any = torch.func.vjp(moved, *[torch.zeros_like(tensors[k]) for k in places])[1]
        grads: list[Tensor | None] = [None] * len(tensors)
        for place, grad in zip(places, pull(ends), strict=True):
            grads[place] = grad
        return tuple(self.rule.around(grads))

    def push(
        self, tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> list[Tensor | None]:
        """The tangents of the tensors of the result, ``None`` for those that have none."""
        pairs = zip(tensors, tangents, strict=True)
        moved = [
            torch.zeros_like(x) if tangent is None and is_inexact(x) else tangent
            for x, tangent in pairs
        ]
        return [x if is_inexact(x) else None for x in self.at(tensors, moved)]
