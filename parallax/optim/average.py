"""Averages of a model over time: exponential (EMA) and equal (SWA)."""

from __future__ import annotations

from typing import Any, Generic

import torch
from torch import Tensor
from typing_extensions import TypeVar

from parallax._compat import dynamo, functorch
from parallax._errors.arguments import answered
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.core.registry import flatten_module, unflatten_module
from parallax.optim.arguments import check_kind
from parallax.optim.checks import check_state, open_initialized
from parallax.tree import core
from parallax.tree.arithmetic import lerp
from parallax.tree.recording import computed

__all__ = ["EMA", "SWA", "Average"]

M = TypeVar("M", bound=Module, default=Any)


class Average(Module, Generic[M]):
    """An average and how many models are in it.

    Attributes:
        model: the average; call it as you would the model.
        count: how many models were averaged, a tensor of no dimension.

    Example:
        >>> import torch
        >>> from parallax import nn, optim
        >>> average = optim.EMA().init(nn.Linear(2, 1).initialize(0))
        >>> average.model(torch.ones(4, 2)).shape, average.count
        (torch.Size([4, 1]), tensor(0.))
    """

    model: M
    count: Buffer


class SWA:
    """The equal average of the models it is given (Izmailov et al. 2018).

    As ``torch.optim.swa_utils.AveragedModel``: parameters are averaged, and buffers are those of
    the last model; compute the statistics of batch normalisation anew at the end.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> swa = optim.SWA()
        >>> average = swa.init(Point(torch.tensor(0.0)))
        >>> for k in (1.0, 2.0):
        ...     average = swa.update(average, Point(torch.tensor(k)))
        >>> average.model.at
        tensor(1.5000)
    """

    def init(self, model: M) -> Average[M]:
        """An average of no models yet; ``average.model`` is a copy of ``model``.

        Args:
            model: an initialised module.

        Returns:
            The average.

        Raises:
            TypeError: if it is not a module.
            UninitializedError: if a leaf has no value yet.
        """
        open_initialized(f"optim.{type(self).__name__}.init", model)
        with torch.no_grad():
            return Average(core.map(Tensor.clone, model), torch.zeros(()))

    def update(self, average: Average[M], model: M) -> Average[M]:
        """The average with one more model in it.

        A graph is recorded only while a derivative is taken, or if the leaves carry one. Leaves
        that ``reset`` made do not count, so a training loop never grows a graph.

        Args:
            average: what ``init`` or the last ``update`` returned.
            model: a module of the same skeleton.

        Returns:
            The new average.

        Raises:
            ValueError: if the model has another skeleton; the message names the first path.
        """
        check_state(f"{type(self).__name__}.update", average, Average, "ema.init(model)")
        with torch.set_grad_enabled(torch.is_grad_enabled() and computed(average.model, model)):
            weight = self._weight(average.count)
            mixed = lerp(average.model, model, weight)
            return Average(_buffers_of(model, mixed), average.count + 1)

    def _weight(self, count: Tensor) -> Any:
        """The weight of the new model in the average."""
        return 1 / (count + 1) if _traced() else 1 / (int(count) + 1)


class EMA(SWA):
    """The exponential moving average of the models it is given; it begins with the first one.

    Args:
        decay: the weight of the old average in each update.

    Raises:
        ValueError: if ``decay`` is not between 0 and 1.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> ema = optim.EMA(decay=0.75)
        >>> average = ema.init(Point(torch.tensor(0.0)))
        >>> for value in (0.0, 4.0):  # in training: after each step, with the new model
        ...     average = ema.update(average, Point(torch.tensor(value)))
        >>> average.model.at
        tensor(1.)
    """

    @answered("optim.EMA", "optim.EMA(decay=0.999)")
    def __init__(self, decay: float = 0.999) -> None:
        check_kind("EMA", "decay", decay, "float", 0.999)
        if not 0.0 <= decay <= 1.0:
            raise ValueError(
                f"EMA: decay must be between 0 and 1, got {decay}. Write EMA(decay=0.999)"
            )
        self.decay = decay

    def _weight(self, count: Tensor) -> Any:
        if _traced():
            return torch.where(count == 0, 1.0, 1 - self.decay)
        return 1.0 if int(count) == 0 else 1 - self.decay


def _traced() -> bool:
    return dynamo.is_compiling() or functorch.transform_active()


def _buffers_of(model: Any, mixed: Any) -> Any:
    """The mixed parameters with the buffers of the model."""
    leaves, part = flatten_module(mixed)
    given, theirs = flatten_module(model)
    rows = zip(leaves, given, theirs.roles, strict=True)
    kept = [b if role == "buffer" else a for a, b, role in rows]
    return unflatten_module(part, kept, mixed._rng)
