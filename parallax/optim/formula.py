"""Optimizers that torch has no kernel for: formulas, in operators out of place.

The same lines run in eager code, in a trace, under ``vmap`` and inside of a derivative.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from parallax.optim.base import Optimizer
from parallax.optim.by_group import ByGroup
from parallax.optim.hyper import Hyper, beside, resolved
from parallax.optim.lists import Lists

__all__ = [
    "Formula", "LeafFormula", "Moments", "check_range", "closed", "opened", "wide_for", "written",
]  # fmt: skip

Moments = dict[str, Tensor]


class Formula(Optimizer):
    """An optimizer whose step is a formula; which values its hyper-parameters may have."""

    _positive: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that must be above zero

    def _check_values(self, hyper: Hyper) -> None:
        for name, value in hyper.items():
            if name in self._positive:
                check_range(name, value, value > 0, "above 0", 1.0)
            elif name in ("lr", "weight_decay", "eps"):
                check_range(name, value, value >= 0, "0 or more", 0.0)
            elif name == "betas":
                for beta in value:
                    check_range("each of betas", beta, 0 <= beta < 1, "from 0 to below 1", 0.9)


class LeafFormula(Formula, ByGroup):
    """An optimizer whose step is a formula of one leaf after the other."""

    @abstractmethod
    def _leaf(
        self, param: Tensor, grad: Tensor, moments: Moments, h: Hyper, once: Hyper
    ) -> tuple[Tensor, Moments]:
        """One leaf after a step, and its moments; all are real, and at least in single precision.

        Args:
            param: the leaf.
            grad: its gradient, to be descended.
            moments: its moments.
            h: the hyper-parameters, as numbers and tensors that can be combined with the leaf.
            once: what ``_once`` computed; likewise.
        """

    def _once(self, age: Tensor, h: Hyper) -> Hyper:
        """What is the same for all leaves that have made as many steps.

        Args:
            age: how many steps they have made, this one included, in double precision.
            h: the hyper-parameters.
        """
        return {"age": age}

    def _advance(self, at: Lists, h: Hyper, step: Tensor, donate: bool) -> Lists:
        h = resolved(h, step)
        at = self._full(at, h)
        ages = [(clock + 1).to(wide_for(clock)) for clock in at.clocks]
        once = {k: self._once(ages[k], h) for k in sorted(set(at.clock_of))}
        params = list(at.params)
        moments = {name: list(column) for name, column in at.moments.items()}
        for k, (param, grad) in enumerate(zip(at.params, at.grads, strict=True)):
            held = {name: opened(column[k]) for name, column in at.moments.items()}
            down = -opened(grad) if h["maximize"] else opened(grad)
            shared = beside(once[at.clock_of[k]], param)
            made, after = self._leaf(opened(param), down, held, beside(h, param), shared)
            params[k] = closed(made, param)
            for name, moment in after.items():
                moments[name][k] = closed(moment, at.moments[name][k])
        return written(at, params, moments, donate)


def check_range(name: str, value: Any, within: bool, bounds: str, example: Any) -> None:
    """Raises unless a number is within bounds.

    Raises:
        ValueError: naming the argument.
    """
    if not within:
        raise ValueError(f"{name} must be {bounds}, got {value}. Write {example}")


def wide_for(clock: Tensor) -> torch.dtype:
    """As wide as Python's numbers, where the device has that: 1 - 0.999**step needs it."""
    return torch.float32 if clock.device.type == "mps" else torch.float64


_HALVES = (torch.float16, torch.bfloat16)


def opened(tensor: Tensor) -> Tensor:
    """A tensor as its formula takes it: pairs for complex numbers, halves in single precision."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.float() if tensor.dtype in _HALVES else tensor


def closed(made: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``opened``."""
    return torch.view_as_complex(made) if like.is_complex() else made.to(like.dtype)


def written(at: Lists, params: list[Tensor], moments: dict[str, list[Any]], donate: bool) -> Lists:
    """The results as lists; in the memory of ``at`` if that is given away."""
    if not donate:
        return Lists(params, at.grads, moments, at.clocks, at.clock_of, at.known)
    old = [*at.params, *[t for column in at.moments.values() for t in column]]
    new = [*params, *[t for column in moments.values() for t in column]]
    for before, after in zip(old, new, strict=True):
        if before is not after:
            before.copy_(after)
    return at
