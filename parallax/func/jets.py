"""Jets: tensors that carry their derivatives along a curve, as functions of torch compute them.

A jet holds the value and the first derivatives, orders 1 to K, of a tensor that depends on one
variable. A function of torch that gets one is replaced by its rule, which computes the jet of the
result; what no rule is known for raises ``NoRuleError``, and the caller takes another way to the
same numbers. Nothing passes by: an operator that a jet reaches without a rule refuses it, too.

With several *directions* at once each derivative has them in front, in dimension 0. If the
expansion is *collapsed*, the highest derivative is the sum over all directions: it enters every
rule linearly, so that the sum can be taken first, and one tensor is carried in place of one for
each direction (Dangel, Siebert, Zeinhofer, Walther, "Collapsing Taylor mode automatic
differentiation", 2025). For order 2 this is the forward Laplacian (Li, Ye, Jiang and others,
"A computational framework for neural network-based variational Monte Carlo with forward
Laplacian", 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

import torch
from torch import Tensor

from parallax._compat import functorch, overrides

__all__ = ["NOTHING", "Expansion", "Jet", "NoRuleError", "Rule", "Term", "plain"]

Term = Tensor | None
"""A derivative; ``None`` is zero."""

Rule = Callable[..., Any]
"""``rule(expansion, function, *args, **kwargs)``: the result of a function of torch."""

_WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""What a rule raises that is given something it does not know."""

_serial = itertools.count()


class NoRuleError(Exception):
    """The expansion of a function is not known here.

    Attributes:
        expansion: which expansion ends.
    """

    def __init__(self, expansion: Expansion, function: Any) -> None:
        super().__init__(f"no Taylor rule for {getattr(function, '__name__', function)}")
        self.expansion = expansion


class Expansion:
    """One run of a function on jets.

    Attributes:
        order: up to which derivative.
        directions: how many curves at once; ``None`` for one, without a dimension for it.
        collapsed: whether the highest derivative is summed over the directions.
        refused: why there are no rules for what was called, if there are none.
        over: whether the run has ended.
    """

    __slots__ = ("collapsed", "directions", "order", "over", "refused", "rules", "serial")

    def __init__(
        self, rules: Mapping[Any, Rule], order: int, directions: int | None = None,
        collapsed: bool = False,
    ) -> None:  # fmt: skip
        self.rules = rules
        self.order = order
        self.directions = directions
        self.collapsed = collapsed
        self.refused: NoRuleError | None = None
        self.over = False
        self.serial = next(_serial)

    def refuse(self, function: Any) -> NoRuleError:
        """The error for a function without a rule; remembered, if somebody catches it."""
        self.refused = NoRuleError(self, function)
        return self.refused

    def applied(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a function of torch, by its rule."""
        if self.over:
            raise RuntimeError(
                "a tensor of a function that func.jet, func.laplacian or func.divergence called "
                "was used after the call. Return it from the function instead of storing it"
            )
        rule = self.rules.get(function)
        # An autograd.Function runs without grad mode, and has a derivative of its own.
        if rule is None or not torch.is_grad_enabled():
            raise self.refuse(function)
        try:
            return rule(self, function, *args, **kwargs)
        except _WRONG as error:
            # Arguments that the rule does not know; or wrong ones, which torch will tell.
            raise self.refuse(function) from error

    # -- what the rules need ------------------------------------------------------------------

    def has(self, value: Any) -> bool:
        """Whether a value is a jet of this expansion."""
        return type(value) is Jet and value.expansion is self

    def value(self, x: Any) -> Any:
        """The value of a jet of this expansion; anything else as it is."""
        return x.value if type(x) is Jet and x.expansion is self else x

    def terms(self, x: Any) -> Sequence[Term]:
        """The derivatives of a jet of this expansion; of anything else zeros."""
        return x.terms if type(x) is Jet and x.expansion is self else [None] * self.order

    def in_front(self, order: int) -> bool:
        """Whether derivatives of this order have the directions in dimension 0."""
        if self.directions is None or order == 0:
            return False
        return not (self.collapsed and order == self.order)

    def jet(self, value: Tensor, terms: Sequence[Term]) -> Tensor:
        """A jet, or its value alone where all derivatives are zero."""
        if all([term is None for term in terms]):
            return value
        made = overrides.without_memory(Jet, value)
        made.expansion, made.value, made.terms = self, value, terms
        return made

    def zeros(self, like: Tensor, order: int) -> Tensor:
        """The derivative of a constant."""
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        front = (self.directions or 0,) if self.in_front(order) else ()
        return zero.expand((*front, *like.shape))

    def fitted(self, term: Term, order: int, value: Tensor) -> Term:
        """A derivative in the shape of its value, to which it may have to be broadcast."""
        if term is None:
            return None
        front = 1 if self.in_front(order) else 0
        if term.dim() - front == value.dim() and term.shape[front:] == value.shape:
            return term
        if front:
            return self.ranked(term, value.dim()).expand((term.shape[0], *value.shape))
        return term.expand(value.shape)

    def aligned(self, term: Term, order: int, rank: int) -> Term:
        """A derivative that can be broadcast to a value of so many dimensions."""
        return term if term is None or not self.in_front(order) else self.ranked(term, rank)

    @staticmethod
    def ranked(term: Tensor, rank: int) -> Tensor:
        """A derivative whose directions stand in front, with more dimensions behind them."""
        missing = rank + 1 - term.dim()
        if missing <= 0:
            return term
        return term.reshape(term.shape[0], *[1] * missing, *term.shape[1:])

    def each(
        self, function: Callable[..., Any], terms: Sequence[Tensor], front: Sequence[bool]
    ) -> Any:
        """A function of derivatives, for each of the directions that some have in front."""
        if not any(front):
            return function(*terms)
        mapped = [term for term, has in zip(terms, front, strict=True) if has]
        lone = True

        def flat(members: Sequence[Tensor]) -> Sequence[Tensor]:
            nonlocal lone
            rest = iter(members)
            pairs = zip(terms, front, strict=True)
            found = function(*[next(rest) if has else term for term, has in pairs])
            lone = isinstance(found, Tensor)
            return [found] if lone else list(found)

        count = mapped[0].shape[0]
        outs = functorch.run_vmap(flat, mapped, [0] * len(mapped), count, "same")
        return outs[0] if lone else outs

    def linear(self, x: Tensor, function: Callable[[Tensor], Any]) -> Any:
        """A linear function of a jet, to a tensor or several."""
        value, terms = function(self.value(x)), self.terms(x)
        moved = [
            None if term is None else self.each(function, [term], [self.in_front(k)])
            for k, term in enumerate(terms, 1)
        ]
        if isinstance(value, Tensor):
            return self.jet(value, moved)
        rows = [
            self.jet(part, [None if terms is None else terms[k] for terms in moved])
            for k, part in enumerate(value)
        ]
        return type(value)(rows) if type(value) in (tuple, list) else tuple(rows)

    def jointly(self, tensors: Sequence[Any], function: Callable[..., Tensor]) -> Tensor:
        """A function of several tensors that is linear in all of them at once."""
        values = [self.value(x) for x in tensors]
        value = function(*values)
        columns = [self.terms(x) for x in tensors]
        found: list[Term] = []
        for k in range(1, self.order + 1):
            row = [terms[k - 1] for terms in columns]
            if all([term is None for term in row]):
                found.append(None)
                continue
            pairs = zip(row, values, strict=True)
            whole = [self.zeros(x, k) if term is None else term for term, x in pairs]
            term = self.each(function, whole, [self.in_front(k)] * len(whole))
            found.append(self.fitted(term, k, value))
        return self.jet(value, found)

    def product(
        self, x: Any, y: Any, value: Tensor,
        times: Callable[[Any, bool, Any, bool], Tensor],
    ) -> Tensor:  # fmt: skip
        """A function that is linear in either of two tensors, by the rule of Leibniz.

        Args:
            x: one of them.
            y: the other.
            value: their product.
            times: takes derivatives of both, each with whether directions stand in front.
        """
        left, right = [self.value(x), *self.terms(x)], [self.value(y), *self.terms(y)]
        found: list[Term] = []
        for k in range(1, self.order + 1):
            total: Term = None
            for j in range(k + 1):
                a, b = left[j], right[k - j]
                if a is None or b is None:
                    continue
                part = times(a, self.in_front(j), b, self.in_front(k - j))
                if self.directions is not None and 0 < j < k and not self.in_front(k):
                    part = part.sum(0)
                scale = comb(k, j)
                part = part if scale == 1 else scale * part
                total = part if total is None else total + part
            found.append(self.fitted(total, k, value))
        return self.jet(value, found)


NOTHING = Expansion({}, 0)
"""Of no order: its rules compute the value."""


class Jet(Tensor):
    """A tensor with its derivatives; only while the function of an expansion runs.

    Attributes:
        expansion: the run it belongs to.
        value: the tensor.
        terms: its derivatives of orders 1, 2, ...
    """

    expansion: Expansion
    value: Tensor
    terms: Sequence[Term]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        expansion = _innermost(args, kwargs)
        if len(types) > 1 and not all(
            [kind is Jet or overrides.is_ordinary(kind) for kind in types]
        ):
            raise expansion.refuse(func)
        return expansion.applied(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # as torch calls it
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        raise _innermost(args, kwargs or {}).refuse(func)


def _innermost(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Expansion:
    """The expansion that began last, of those that the arguments belong to."""
    found: Expansion | None = None
    todo = [*args, *kwargs.values()] if kwargs else list(args)
    for arg in todo:
        if type(arg) is Jet:
            if found is None or arg.expansion.serial > found.serial:
                found = arg.expansion
        elif type(arg) in (tuple, list):
            todo += arg
        elif type(arg) is dict:
            todo += arg.values()
        elif type(arg) is slice:
            todo += (arg.start, arg.stop, arg.step)
    if found is None:
        raise TypeError("no jet among the arguments")
    return found


def plain(expansion: Expansion, tensors: Sequence[Any]) -> list[Any]:
    """The values of the jets of an expansion."""
    return [expansion.value(x) for x in tensors]
