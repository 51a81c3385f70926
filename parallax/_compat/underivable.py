"""Operators that torch takes for constant, though they are not: Bessel functions and others.

Torch has no derivative of them. Alone, ``backward()`` raises; beside others, and in ``torch.func``,
their part is left out without a word. Here torch is told to ask first, which costs the call of such
an operator a few microseconds, and others nothing.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from parallax._compat import modes

__all__ = ["refuse_derivatives"]

_KINDS = "t", "u", "v", "w"
_NAMES = (
    "special_airy_ai", "special_bessel_j0", "special_bessel_j1", "special_bessel_y0",
    "special_bessel_y1", "special_modified_bessel_i0", "special_modified_bessel_i1",
    "special_modified_bessel_k0", "special_modified_bessel_k1",
    "special_scaled_modified_bessel_k0", "special_scaled_modified_bessel_k1",
    "special_spherical_bessel_j0", "special_hermite_polynomial_h", "special_hermite_polynomial_he",
    "special_laguerre_polynomial_l", "special_legendre_polynomial_p",
    *[f"special_chebyshev_polynomial_{kind}" for kind in _KINDS],
    *[f"special_shifted_chebyshev_polynomial_{kind}" for kind in _KINDS],
)  # fmt: skip

_libraries: list[Any] = []


def refuse_derivatives(running: Callable[[], bool]) -> None:
    """Has these operators raise where a derivative is taken of what they are given; once.

    Args:
        running: whether somebody who wants to be told takes a derivative, where one is taken.
    """
    if _libraries or modes.jit_tracing():
        return  # told already, or what is asked would be recorded
    library: Any = torch.library.Library("aten", "IMPL")
    _libraries.append(library)  # torch keeps what it was told as long as this lives
    with warnings.catch_warnings(), modes.outside_of_all():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name in _NAMES:
            packet = getattr(torch.ops.aten, name, None)
            for overload in () if packet is None else packet.overloads():
                operator = getattr(packet, overload)
                if not (overload.endswith("out") or _has_derivative(operator)):
                    kernel = _asking(operator, name.replace("special_", "special.", 1), running)
                    library.impl(operator, kernel, "Autograd", allow_override=True)


def _has_derivative(operator: Any) -> bool:
    """Whether this release of torch knows one."""
    tensors = [torch.ones((), requires_grad=True) for _ in operator._schema.arguments]
    kinds = [type(arg.type) is torch.TensorType for arg in operator._schema.arguments]
    pairs = zip(tensors, kinds, strict=True)
    with torch.enable_grad():
        found: Tensor = operator(*[x if is_tensor else 1 for x, is_tensor in pairs])
    return found.requires_grad


def _asking(operator: Any, name: str, running: Callable[[], bool]) -> Callable[..., Tensor]:
    def kernel(*args: Any) -> Tensor:
        if any([isinstance(x, Tensor) and _moves(x) for x in args]) and running():
            raise RuntimeError(
                f"torch has no derivative of torch.{name}, and leaves its part out without a word. "
                f"Detach what it is given: x.detach(); or write its derivative by func.custom_vjp"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)  # type: ignore[no-any-return]  # it is torch's

    return kernel


def _moves(x: Tensor) -> bool:
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
