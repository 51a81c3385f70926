"""Operators that torch takes for constant, though they are not: Bessel functions and others.

Torch has no derivative of them. Alone, ``backward()`` raises; beside others, and in ``torch.func``,
their part is left out without a word. ``linspace`` and ``logspace`` of tensors are computed below
autograd, with the same effect. Here torch is told to ask first, which costs the call of such an
operator a few microseconds, and others nothing.
"""

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from parallax._compat import functorch, modes

__all__ = ["below_autograd", "moves", "refuse_derivatives"]

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

_RANGES = {
    "linspace": "start + (end - start) * torch.arange(steps) / (steps - 1)",
    "logspace": "base ** (start + (end - start) * torch.arange(steps) / (steps - 1))",
}
"""What to write in place of them."""

_libraries: list[Any] = []


def refuse_derivatives(running: Callable[[], bool]) -> bool:
    """Has these operators raise where a derivative is taken of what they are given; once.

    Args:
        running: whether somebody who wants to be told takes a derivative, where one is taken.

    Returns:
        Whether torch was told now.
    """
    if _libraries or modes.jit_tracing():
        return False  # told already, or what is asked would be recorded
    library: Any = torch.library.Library("aten", "IMPL")
    _libraries.append(library)  # torch keeps what it was told as long as this lives
    with warnings.catch_warnings(), modes.outside_of_all():
        warnings.filterwarnings("ignore", message="Warning only once for all operators")
        for name in _NAMES:
            packet = getattr(torch.ops.aten, name, None)
            for overload in () if packet is None else packet.overloads():
                operator = getattr(packet, overload)
                if not (overload.endswith("out") or _has_derivative(operator)):
                    kernel = _asking(operator, _no_derivative(name), running)
                    library.impl(operator, kernel, "Autograd", allow_override=True)
        for name, instead in _RANGES.items():
            _ask_for_range(library, name, _lost(name, instead), running)
    return True


def _has_derivative(operator: Any) -> bool:
    """Whether this release of torch knows one."""
    tensors = [torch.ones((), requires_grad=True) for _ in operator._schema.arguments]
    kinds = [type(arg.type) is torch.TensorType for arg in operator._schema.arguments]
    pairs = zip(tensors, kinds, strict=True)
    with torch.enable_grad():
        found: Tensor = operator(*[x if is_tensor else 1 for x, is_tensor in pairs])
    return found.requires_grad


def _ask_for_range(library: Any, name: str, message: str, running: Callable[[], bool]) -> None:
    """Autograd is asked within derivatives of ``torch.func``; else torch passes it by."""
    plain = getattr(torch.ops.aten, name).default

    refuse = _refusing(message, running)

    def kernel(*args: Any, **options: Any) -> Tensor:
        refuse(args)
        numbers = [x.item() if isinstance(x, Tensor) else x for x in args]
        return plain(*numbers, **options)  # type: ignore[no-any-return]  # it is torch's

    for kinds in ("Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor"):
        operator = getattr(getattr(torch.ops.aten, name), kinds)
        library.impl(operator, _asking(operator, message, running), "Autograd", allow_override=True)
        library.impl(operator, kernel, "CompositeExplicitAutograd", allow_override=True)
        mapped = torch.library.get_kernel(operator, "FuncTorchBatched")
        library.impl(operator, _first(refuse, mapped), "FuncTorchBatched", allow_override=True)


def _refusing(message: str, running: Callable[[], bool]) -> Callable[[Any], None]:
    """Raises if autograd's tape could ask for a derivative."""

    def refuse(args: Any) -> None:
        tensors = [functorch.innermost(x) for x in args if isinstance(x, Tensor)]
        if torch.is_grad_enabled() and any([x.requires_grad for x in tensors]) and running():
            raise RuntimeError(message)

    return refuse


def _first(refuse: Callable[[Any], None], kernel: Any) -> Callable[..., Tensor]:
    """Torch's kernel for members of a ``vmap``, and before it something else."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)

    def both(*args: Any, **options: Any) -> Tensor:
        refuse(args)
        return kernel.call_boxed(keys, *args, **options)  # type: ignore[no-any-return]  # it is torch's

    return both


def _no_derivative(name: str) -> str:
    return (
        f"torch has no derivative of torch.{name.replace('special_', 'special.', 1)}, and leaves "
        f"its part out without a word. Detach what it is given: x.detach(); or write its "
        f"derivative by func.custom_vjp"
    )


def _lost(name: str, instead: str) -> str:
    return (
        f"torch.{name} computes without a graph, so that the derivative by the tensors that it is "
        f"given would be lost. Write {instead}; or, for a constant, detach them: x.detach()"
    )


def _asking(operator: Any, message: str, running: Callable[[], bool]) -> Callable[..., Tensor]:
    def kernel(*args: Any, **options: Any) -> Tensor:
        if any([isinstance(x, Tensor) and moves(x) for x in args]) and running():
            raise RuntimeError(message)
        return below_autograd(operator, args, options)  # type: ignore[no-any-return]  # it is torch's

    return kernel


def below_autograd(operator: Any, args: Any, options: Any) -> Any:
    """What torch's own kernel gives; for one in front of it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args, **options)


def moves(x: Tensor) -> bool:
    """Whether a derivative may be taken by a tensor, as autograd sees it."""
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None
