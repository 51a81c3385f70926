"""Arguments of torch's functions that are numbers, given as tensors that are differentiated.

Reverse mode refuses them: ``torch.add(x, y, alpha=t)`` raises if ``t`` requires grad. Forward mode
reads the number, and the derivative is lost without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parallax._compat import functorch

__all__ = ["refuse_numbers"]

_WITH_TENSORS = frozenset({F.gaussian_nll_loss, F.gumbel_softmax, F.local_response_norm,
                           F.lp_pool1d, F.lp_pool2d, F.lp_pool3d})  # fmt: skip
"""Functions written in Python that compute with what they say is a number."""


def refuse_numbers(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raises if a tensor that is differentiated stands where a function takes a number.

    Raises:
        TypeError: naming the function and the argument.
    """
    for x in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(x, Tensor) and x.dim() == 0:
            _look(function, args, kwargs)
            return


def _look(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    for place, x in (*enumerate(args), *kwargs.items()):
        name = _number_at(function, place) if isinstance(x, Tensor) and x.dim() == 0 else None
        if name is not None and functorch.is_differentiated_around(x):
            raise TypeError(
                f"{function.__name__}({name}=): takes a number, so that the forward derivative by "
                f"the tensor that is given would be lost. Compute with the tensor in operators, "
                f"such as x + {name} * y, or write {name}=t.item() if it is a constant"
            )


@lru_cache(maxsize=1024)
def _number_at(function: Any, place: int | str) -> str | None:
    """The name of an argument that is a number and never a tensor; ``None`` for others."""
    if function in _WITH_TENSORS:
        return None
    if isinstance(function, FunctionType):
        parameters = inspect.signature(function, follow_wrapped=False).parameters
        name = place if isinstance(place, str) else [*parameters, *[""] * place][place]
        kinds = [str(parameters[name].annotation)] if name in parameters else []
    else:
        called = getattr(function, "__name__", "")
        # Reading x.T is a call of __get__, which all objects have, the operators, too.
        packet: Any = None if called.startswith("__") else getattr(torch.ops.aten, called, None)
        given = [] if packet is None else [_argument(packet, o, place) for o in packet.overloads()]
        found = [argument for argument in given if argument is not None]
        kinds, name = [str(x.type) for x in found], found[0].name if found else ""
    numbers = any([word in kind for kind in kinds for word in ("float", "number")])
    return name if numbers and not any(["Tensor" in kind for kind in kinds]) else None


def _argument(packet: Any, overload: str, place: int | str) -> Any:
    """The argument of an operator at a place or of a name."""
    if overload.endswith("out"):
        return None
    for k, argument in enumerate(getattr(packet, overload)._schema.arguments):
        if place == argument.name or (place == k and not argument.kwarg_only):
            return argument
    return None
