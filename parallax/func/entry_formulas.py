"""Functions of each entry by operators, as in ``formulas``.

At zero the derivatives of ``sinc``, ``i0`` and ``i1`` end. The second of ``mish`` overflows, and of
``logaddexp`` it is nan where one is minus infinity; of ``hardsigmoid`` and ``glu`` some are
missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import overrides
from parallax.func.jet_composed import COMPOSED
from parallax.func.jets import NOTHING
from parallax.func.other import AsItIsError, Other, in_single

__all__ = ["ENTRIES"]


def _sinc(function: Any, x: Tensor) -> Tensor:
    found: Tensor = COMPOSED["sinc"](NOTHING, function, x)
    return found


def _mish(function: Any, x: Tensor, **options: Any) -> Tensor:
    found: Tensor = COMPOSED["mish"](NOTHING, function, x, **options)
    return found


def _i0(function: Any, x: Tensor) -> Tensor:
    return _near(x, torch.i0, lambda k: math.factorial(k) ** -2)


def _i1(function: Any, x: Tensor) -> Tensor:
    def factor(k: int) -> float:
        return 0.5 / (math.factorial(k) * math.factorial(k + 1))

    return _near(x, torch.special.i1, factor, odd=True)


def _near(
    x: Tensor, function: Callable[[Tensor], Tensor], factor: Callable[[int], float],
    odd: bool = False,
) -> Tensor:  # fmt: skip
    """By its series in ``x**2 / 4`` near zero, where torch's derivatives end."""
    wide = in_single(x)
    near = wide.abs() < 1
    inner = torch.where(near, wide, 0)
    quarter = inner * inner / 4
    series = torch.full_like(wide, factor(_TERMS))
    for k in range(_TERMS - 1, -1, -1):
        series = series * quarter + factor(k)
    series = series * inner if odd else series
    return torch.where(near, series, function(torch.where(near, 1, wide))).to(x.dtype)


_TERMS = 12


def _logit(function: Any, x: Tensor, eps: float | None = None) -> Tensor:
    inner = x if eps is None or eps < 0 else x.clamp(eps, 1 - eps)
    return inner.log() - torch.log1p(-inner)


def _hardsigmoid(function: Any, x: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        raise AsItIsError
    return F.relu6(x + 3) / 6


def _glu(function: Any, x: Tensor, dim: int = -1) -> Tensor:
    if x.dim() == 0 or x.shape[dim] % 2:
        raise AsItIsError
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def _logaddexp(function: Any, x: Tensor, other: Tensor) -> Tensor:
    most = torch.maximum(x, other).detach()
    none = most == -math.inf
    most = torch.where(none, 0, most)
    total = (x - most).exp() + (other - most).exp()
    return torch.where(none, -math.inf, torch.where(none, 1, total).log() + most)


def _table() -> dict[Any, Other]:
    named, x = overrides.functions_named, ("input",)
    inplace = frozenset({"inplace"})
    sinc = Other(_sinc, x, forward=1, reverse=2, node=("SincBackward0",))
    mish = Other(_mish, x, inplace, reverse=2, node=("MishBackward0",))
    i0 = Other(_i0, x, reverse=2, node=("I0Backward0",))
    i1 = Other(_i1, x, reverse=2, node=("SpecialI1Backward0",))
    logit = Other(_logit, x, frozenset({"eps"}), reverse=2, node=("LogitBackward0", "eps"))
    hard = Other(_hardsigmoid, x, inplace, reverse=2, node=("HardsigmoidBackward0",))
    sums = Other(
        _logaddexp, ("input", "other"), reverse=2, node=("LogaddexpBackward0",),
        kept=("self", "other"),
    )  # fmt: skip
    return {
        **dict.fromkeys(named("sinc"), sinc),
        **dict.fromkeys(named("mish"), mish),
        **dict.fromkeys(named("i0"), i0),
        torch.special.i1: i1,
        **dict.fromkeys(named("logit"), logit),
        **dict.fromkeys(named("logaddexp"), sums),
        F.hardsigmoid: hard,
        F.glu: Other(_glu, x, frozenset({"dim"})),
    }


ENTRIES = _table()
"""What is computed in place of which function."""
