"""What losses share: how they reduce, and the errors of inputs and targets that do not fit."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from parallax._errors.arguments import shown
from parallax.core.module import Module
from parallax.nn.arguments import one_of
from parallax.nn.families import shown_as
from parallax.nn.refusal import name_in, require_tensor, where

__all__ = [
    "Loss",
    "Pointwise",
    "compared",
    "reduced",
    "refuse_shapes",
    "refuse_target",
    "require_floating",
    "weights_given",
]


class Loss(Module):
    """What losses share.

    Args:
        reduction: ``"mean"`` or ``"sum"`` of all losses, or ``"none"`` for each of them.

    Shape:
        - output: ``()``, or one loss for each with ``reduction="none"``

    Raises:
        TypeError: if an argument is of another type, or an input is not a tensor.
        ValueError: if an argument is out of range, or an input is of another shape.
    """

    reduction: str

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = one_of(type(self).__name__, "reduction", reduction, "mean", "sum", "none")

    extra_repr = shown_as(torch.nn.Module)


class Pointwise(Loss, init=False):
    """A loss that compares each number of the input with that of the target in its place.

    Torch broadcasts tensors of different shapes, with a warning; here they are an error, as the
    mean over all pairs of predictions and targets is not what anybody wants.

    Shape:
        - input, target: ``(*)``, of one shape
        - output: ``()``, or as the input with ``reduction="none"``
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the input against the target."""
        return compared(self, input, target)


def compared(layer: Any, input: Tensor, target: Tensor) -> Tensor:
    """What ``layer._of(input, target)`` gives, of two tensors of one shape."""
    try:
        if input.shape != target.shape:
            refuse_shapes(layer, input, target)
        out: Tensor = layer._of(input, target)
    except (AttributeError, RuntimeError, TypeError) as error:
        require_tensor(layer, input)
        require_tensor(layer, target, "target")
        name_in(error, layer)
        raise
    return out


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """The mean or sum of losses, or these as they are."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def refuse_shapes(layer: Any, input: Tensor, target: Tensor) -> NoReturn:
    """Raises the error of a target that has another shape than the input."""
    one, two = tuple(input.shape), tuple(target.shape)
    same = input.numel() == target.numel()
    remedy = "target.reshape(input.shape)" if same else f"a target of shape {one}"
    raise ValueError(
        f"{where(layer)}: expected input and target of one shape, got {one} and {two}. "
        f"Give {remedy}"
    )


def require_floating(layer: Any, given: Tensor, name: str = "input") -> None:
    """Raises a ``TypeError`` unless a tensor is of a floating dtype."""
    if not given.is_floating_point():
        raise TypeError(
            f"{where(layer)}: {name} must be floating, got {given.dtype}. Write {name}.float()"
        )


def weights_given(layer: str, name: str, weight: Any, dim: int | None = 1) -> Tensor | None:
    """Raises unless an argument is a floating tensor, of so many dimensions, or ``None``.

    Args:
        layer: the class that was given it.
        name: the name of the argument.
        weight: what was given.
        dim: how many dimensions it has; ``None`` for any.

    Raises:
        TypeError: if it is no floating tensor.
        ValueError: if it has other dimensions.
    """
    write = f"Write {name}=torch.tensor([1.0, 2.0])"
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        of = f" of dtype {weight.dtype}" if isinstance(weight, Tensor) else ""
        raise TypeError(
            f"{layer}({name}=): expected a floating tensor or None, got {shown(weight)}{of}. "
            f"{write}"
        )
    if dim is not None and weight.dim() != dim:
        raise ValueError(
            f"{layer}({name}=): expected one number for each class, got {shown(weight)}. {write}"
        )
    return weight


def refuse_target(
    layer: Any, input: Tensor, target: Tensor, wanted: tuple[int, ...], shares: bool = False
) -> None:
    """Raises if a target does not fit the scores that it is compared with, and returns otherwise.

    Args:
        layer: the module that was called.
        input: scores of classes.
        target: what it was given.
        wanted: the shape of a target that holds class indices.
        shares: whether the target may also hold shares, in the shape of the input.

    Raises:
        TypeError: if it holds no class indices.
        ValueError: if it is of another shape.
    """
    if shares and target.is_floating_point():
        if target.shape != input.shape:
            refuse_shapes(layer, input, target)
        return
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"{where(layer)}: expected a target of shape {wanted} with input of shape "
            f"{tuple(input.shape)}, got {tuple(target.shape)}. Give target.reshape({wanted})"
        )
    if target.dtype is not torch.int64:
        raise TypeError(
            f"{where(layer)}: target must hold class indices of dtype torch.int64, got "
            f"{target.dtype}. Write target.long()"
        )
