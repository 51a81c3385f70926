"""``check``: an assertion about the numbers in tensors, in eager, mapped and compiled code."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from parallax._compat import dynamo, shards
from parallax._errors.arguments import shown
from parallax.debug.messages import check_message, filled, rendered
from parallax.debug.operator import checking, numbers_are_hidden

__all__ = ["CheckError", "check"]


class CheckError(AssertionError):
    """What ``debug.check`` was given is false.

    Example:
        >>> import torch
        >>> from parallax import debug
        >>> rate = torch.tensor(-0.5)
        >>> try:
        ...     debug.check(rate > 0, "the rate must be positive, got {rate}", rate=rate)
        ... except debug.CheckError as error:
        ...     print(error)
        the rate must be positive, got -0.5
    """


def check(condition: Tensor | bool, message: str, /, **values: Any) -> None:
    """Raises unless a condition holds, within transforms and in compiled code, too.

    Compiled code holds an operator that raises the same error. As in eager code, the CPU waits for
    the condition if that is on another device. Derivatives stay as they are. Where tensors have no
    numbers (on the meta device, in ``func.eval_shape``) nothing is checked.

    Args:
        condition: a bool, or a tensor of bools of which all must be true.
        message: what is wrong, with the names of values in braces, as in ``str.format``.
        **values: what the message names; what it does not name is shown at its end. Of a tensor
            within ``vmap``, the part of the first sample that fails is shown.

    Raises:
        CheckError: if the condition is false; with the first element for which it is and, within
            ``vmap``, the first sample.
        TypeError: if ``condition`` is no bool and no tensor of bools, or ``message`` no text whose
            braces name ``values``.

    Example:
        >>> import torch
        >>> from parallax import debug, func
        >>> def root(x):
        ...     debug.check(x >= 0, "there is no root of {x}", x=x)
        ...     return x.sqrt()
        >>> func.vmap(func.grad(root))(torch.tensor([4.0, 1.0]))
        tensor([0.2500, 0.5000])
        >>> func.vmap(func.grad(root))(torch.tensor([4.0, -1.0]))
        Traceback (most recent call last):
        parallax.debug.check.CheckError: there is no root of -1.0: false in sample 1 (1 of 2...
    """
    if not isinstance(message, str):
        raise TypeError(
            f"debug.check(condition, message): the message must be text, got {shown(message)}. "
            f"Write debug.check(x > 0, 'x is {{x}}', x=x)"
        )
    check_message(message, tuple(values))
    if not isinstance(condition, Tensor):
        if not isinstance(condition, (bool, torch.SymBool)):
            raise TypeError(_no_condition(shown(condition)))
        if condition:
            return
        condition = torch.full((), False, device="cpu")
    elif condition.dtype is not torch.bool:
        raise TypeError(_no_condition(f"a tensor of {condition.dtype}"))
    hidden = numbers_are_hidden()
    if not hidden:
        whole: Tensor = shards.whole(condition)
        condition = whole
        values = {name: shards.whole(value) for name, value in values.items()}
    if not hidden and (condition.device.type == "meta" or condition.all()):
        return
    tensors, others = _apart(values)
    text, names = filled(message, tuple(tensors), others), list(tensors)
    bare = [x.detach() for x in tensors.values()]
    if hidden:
        _operator(condition.detach(), bare, text, names, 0)
    else:
        _check(condition, bare, text, names, 0)


def _no_condition(got: str) -> str:
    return (
        f"debug.check(condition, message): the condition must be a bool or a tensor of bools, got "
        f"{got}. Write a comparison: debug.check(x > 0, 'x is {{x}}', x=x)"
    )


def _apart(values: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors among the values, and the others."""
    traced = dynamo.is_compiling()
    tensors, others = {}, {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif traced and type(value) in (int, float, torch.SymInt):
            # A number may be an argument of the graph, which is to take others as well.
            number: Any = value
            tensors[name] = torch.full((), number, device="cpu")
        else:
            others[name] = value
    return tensors, others


# -- the operator ---------------------------------------------------------------------------


def _check(
    condition: Tensor, values: Sequence[Tensor], message: str, names: Sequence[str], levels: int
) -> None:
    """Raises unless the condition holds for all members.

    Args:
        condition: with the dimensions of the members in front; of size 1 where all have the same.
        values: likewise.
        message: with the names of values in braces.
        names: of the values.
        levels: how many dimensions of members there are.
    """
    if condition.device.type == "meta" or condition.all():
        return
    false = condition.logical_not()
    index = [int(k) for k in false.nonzero()[0]]
    shown_values = {
        name: _of_member(value, index[:levels]) for name, value in zip(names, values, strict=True)
    }
    members, numbers = prod(false.shape[:levels]), prod(false.shape[levels:])
    failed = int(false.reshape(members, numbers).any(1).sum())
    where = [
        f"in sample {_joined(index[:levels])} ({failed} of {members} samples)" * (members > 1),
        f"at [{_joined(index[levels:])}] ({int(false.sum())} of {false.numel()} numbers)"
        * (numbers > 1),
    ]
    place = " ".join([part for part in where if part])
    raise CheckError(rendered(message, shown_values) + f": false {place}" * bool(place))


def _of_member(value: Tensor, member: Sequence[int]) -> Any:
    """The part of one member, where members have parts of their own; a number if it is one."""
    for k in member:
        value = value[k if value.shape[0] > 1 else 0]
    return value if value.ndim else value.item()


def _joined(index: Sequence[int]) -> str:
    return ", ".join(map(str, index))


def _mapped(
    dims: tuple[Any, ...], condition: Tensor, values: Sequence[Tensor], *rest: Any
) -> tuple[Any, ...]:
    """What the operator is given for all members at once."""
    message, names, levels = rest
    fronts = [_front(x, dim) for x, dim in zip(values, dims[1], strict=True)]
    return _front(condition, dims[0]), fronts, message, names, levels + 1


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)


_operator = checking(
    "(Tensor condition, Tensor[] values, str message, str[] names, int levels) -> ()",
    _check,
    _mapped,
)
