"""A function of tensors, run with jets; and the other way where it calls what has no rule.

The function is made by ``make(levels)`` for so many transforms around it, none for jets, together
with what takes the tensors beside its results to what came beside: see ``transforms.through``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat import modes
from parallax.func.jets import Expansion, NoRuleError, Term, plain

__all__ = [
    "Flat",
    "Make",
    "Series",
    "basis",
    "by_jets_or",
    "count_of",
    "jets_around",
    "run",
    "whole",
]

Flat = Callable[..., tuple[Sequence[Tensor], Sequence[Tensor]]]
Make = Callable[[int], tuple[Flat, Callable[[Sequence[Tensor]], Any]]]
Series = Sequence[Sequence[Term]]
T = TypeVar("T")


class _Running(threading.local):
    """How many expansions run."""

    count = 0


_running = _Running()


def jets_around() -> bool:
    """Whether a function runs with jets, which nothing can keep for later."""
    return _running.count > 0


def by_jets_or(by_jets: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """The first; the second where a function has no rule."""
    begun = Expansion({}, 0).serial
    try:
        return by_jets()
    except NoRuleError as error:
        if error.expansion.serial < begun:  # an expansion around this one ends
            raise
    with random.reuse():
        return otherwise()


def run(
    expansion: Expansion, make: Make, values: Sequence[Tensor], series: Series
) -> tuple[Sequence[Tensor], Series, Any]:
    """Results, of each its derivatives, and what came beside.

    Grad mode is on: where it is off, a function has a derivative of its own.
    """
    flat, after = make(0)
    enabled = torch.is_grad_enabled()
    with torch.enable_grad():
        _running.count += 1
        try:
            jets = [expansion.jet(x, terms) for x, terms in zip(values, series, strict=True)]
            outs, beside = flat(*jets)
        finally:
            _running.count -= 1
            expansion.over = True
    if expansion.refused is not None:
        raise expansion.refused
    found = plain(expansion, outs)
    columns = [expansion.terms(x) for x in outs]
    if not enabled and modes.tape_is_exact():
        found = [x.detach() for x in found]
        columns = [[None if t is None else t.detach() for t in terms] for terms in columns]
    return found, columns, after(plain(expansion, beside))


def whole(value: Tensor, term: Term) -> Tensor:
    """A derivative as a tensor."""
    return torch.zeros_like(value) if term is None else term


def count_of(values: Sequence[Tensor]) -> int:
    """How many entries tensors have."""
    return sum([value.numel() for value in values])


def basis(values: Sequence[Tensor]) -> list[Tensor]:
    """The directions of all entries, for each tensor in dimension 0."""
    count, start, rows = count_of(values), 0, []
    for value in values:
        eye = torch.eye(count, dtype=value.dtype, device=value.device)
        rows.append(eye[:, start : start + value.numel()].reshape(count, *value.shape))
        start += value.numel()
    return rows
