"""What is computed in place of a function of torch whose derivatives are wrong, or missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parallax._compat import functorch
from parallax._compat.gradients import AsItIsError

__all__ = ["AsItIsError", "Other", "in_single"]


class Other(NamedTuple):
    """A function that is computed in place of one of torch's.

    Attributes:
        compute: takes that of torch and its arguments.
        names: of the arguments that have no default, some others behind them.
        options: the names of others.
        forward: from which order on torch's own derivative in forward mode is wrong, or missing.
        reverse: the same of gradients; 0 if they are right.
        node: the name of torch's node in autograd's graph, if it keeps what it is computed from;
            behind it names of options that it keeps, too.
        kept: the names that the node has for the tensors.
        within: whether functions that it calls are replaced in turn.
        constants: places (or -1) and names of arguments that torch's forward derivative takes for
            constant.
    """

    compute: Callable[..., Any]
    names: Sequence[str]
    options: frozenset[str] = frozenset()
    forward: int = 2
    reverse: int = 0
    node: Sequence[str] = ()
    kept: Sequence[str] = ("self",)
    within: bool = False
    constants: Sequence[tuple[int, str]] = ()

    def __call__(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What is computed, for the arguments of torch's function."""
        behind, rest = self.names[len(args) :], dict(kwargs)
        if not kwargs.keys() <= {*behind, *self.options} or not kwargs.keys() >= {*behind}:
            raise AsItIsError  # with ``out=``, and where torch says what is wrong
        return self.compute(function, *args, *[rest.pop(name) for name in behind], **rest)

    def drops(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """Whether torch's forward derivative would leave out a part, that by some argument."""
        given = [args[k] if 0 <= k < len(args) else kwargs.get(name) for k, name in self.constants]
        return any([isinstance(x, Tensor) and functorch.is_differentiated(x) for x in given])


def in_single(value: Any) -> Any:
    """A tensor of half precision in single precision, as kernels compute it; others as they are."""
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value
