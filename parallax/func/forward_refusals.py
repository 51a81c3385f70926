"""Functions of torch of which reverse mode is right, and forward mode is not.

What is raised of them is what torch raises of an operator without a forward derivative, and reverse
mode takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import overrides

__all__ = ["REFUSED", "Refused"]


class Refused(NamedTuple):
    """A function of which reverse mode is right, and taken in place of forward mode.

    Attributes:
        what: what is refused, for error messages.
        when: tells by its arguments.
        order: from which order on the derivative is wrong; of the second order its gradient is.
    """

    what: str
    when: Callable[[Sequence[Any], dict[str, Any]], bool] = lambda args, kwargs: True
    order: int = 1

    def raise_for(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Raises as torch does for an operator without a forward derivative.

        Raises:
            RuntimeError: if it is refused.
        """
        if self.when(args, kwargs):
            raise RuntimeError(
                f"Trying to use forward AD with {self.what}, whose forward derivative torch has "
                f"wrong. Use reverse mode: func.grad, func.vjp, func.jacrev"
            )


def _refused() -> dict[Any, Refused]:
    # Of torch's own, factors of one target count as independent of each other.
    scattered = Refused("scatter_reduce of products", _multiplies)
    # The gradient of their forward derivative is nan, or raises.
    vectors = Refused("linalg.eigh or eig within a gradient", order=2)
    values = Refused("linalg.eigvals or eigvalsh in a third derivative", order=3)
    fused = getattr(F, "linear_cross_entropy", None)
    chunks = (
        {} if fused is None else {fused: Refused("linear_cross_entropy with options", _has_options)}
    )
    return {
        **dict.fromkeys(overrides.functions_named("scatter_reduce"), scattered),
        Tensor.scatter_reduce_: scattered,
        torch.linalg.eigh: vectors,
        torch.linalg.eig: vectors,
        torch.linalg.eigvals: values,
        torch.linalg.eigvalsh: values,
        **chunks,
    }


def _multiplies(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return "prod" in (*[x for x in args if isinstance(x, str)], kwargs.get("reduce"))


def _has_options(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return kwargs.get("options") is not None  # then in chunks, which forward mode passes by


REFUSED = _refused()
"""What is not differentiated forwards."""
