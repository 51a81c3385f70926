"""Transformations of each gradient on its own: adaptive clipping, centralisation and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax import random
from parallax._compat import shards
from parallax.core.fields import Buffer
from parallax.core.module import Module
from parallax.optim.arguments import check_at_least, check_fields
from parallax.optim.checks import (
    check_state,
    gather,
    open_initialized,
    open_model,
    refuse_sparse,
)
from parallax.optim.state import around
from parallax.tree import core
from parallax.tree.arguments import check_tree

__all__ = ["AddNoise", "Centralize", "ClipAdaptive", "Noise"]

T = TypeVar("T")


@dataclass(frozen=True)
class ClipAdaptive:
    """Gradients scaled down where they are large beside the weights; a part of ``chain``.

    Adaptive gradient clipping, as Brock et al. 2021: the norm of each row of a gradient is at most
    ``clipping`` times that of the row of its parameter. A row is what belongs to one index of the
    first dimension, the weights of one output say; a vector is a row as a whole. In ``nn.Stack``
    a row is what one block holds of a leaf, a whole matrix say.

    Args:
        clipping: the largest ratio of the norms.
        eps: the least norm of a parameter's row, so that a new zero can grow.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt = optim.chain(optim.ClipAdaptive(0.1), optim.SGD(lr=1.0))
        >>> point = Point(torch.tensor([3.0, 4.0]))
        >>> opt.step(point, Point(torch.tensor([6.0, 8.0])), opt.init(point))[0].at
        tensor([2.7000, 3.6000])
    """

    clipping: float = 0.01
    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_fields("ClipAdaptive", self)
        check_at_least("ClipAdaptive", "clipping", self.clipping, 0, strictly=True)
        check_at_least("ClipAdaptive", "eps", self.eps, 0)

    def update(self, grads: T, state: None, model: Any) -> tuple[T, None]:
        """The clipped gradients.

        Args:
            grads: gradients, or the updates of an optimizer.
            state: nothing.
            model: the module that they belong to.

        Returns:
            The gradients, and no state.
        """
        what = "optim.ClipAdaptive.update"
        leaves, part = open_model(what, model)
        chosen, given = gather(what, model, leaves, part, grads)
        refuse_sparse(what, grads)
        made = list(given)
        for k in chosen:
            size, most = _row_norms(given[k]), _row_norms(leaves[k])
            most = most.clamp(min=self.eps) * self.clipping
            factor = torch.where(size > most, most / size.clamp(min=_TINY), 1.0)
            made[k] = (given[k] * factor).to(given[k].dtype)
        return around(model, made), state


_TINY = 1e-30  # no norm above a limit is smaller, and zero by zero would be nan where unused


_vector_norm: Callable[..., Tensor] = torch.linalg.vector_norm


def _row_norms(tensor: Tensor) -> Tensor:
    """The norm of each row, halves in single precision, with dimensions of one."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if tensor.ndim < 2:
        return _vector_norm(tensor)
    return _vector_norm(tensor, dim=tuple(range(1, tensor.ndim)), keepdim=True)


@dataclass(frozen=True)
class Centralize:
    """Gradients whose rows have a mean of zero; a part of ``chain``.

    Gradient centralisation, as Yong et al. 2020. A row is what belongs to one index of the first
    dimension; vectors and numbers stay as they are. In ``nn.Stack`` a row is what one block holds
    of a leaf, so that a matrix has one mean, and so has a bias.

    Example:
        >>> import torch
        >>> from parallax import optim
        >>> optim.Centralize()({"weight": torch.tensor([[1.0, 3.0]]), "bias": torch.ones(1)})
        {'weight': tensor([[-1.,  1.]]), 'bias': tensor([1.])}
        >>> opt = optim.chain(optim.Centralize(), optim.SGD())
    """

    def __call__(self, grads: T) -> T:
        """The centralised gradients."""
        check_tree("Centralize", grads, "grads")
        refuse_sparse("Centralize", grads)
        return core.map(_centralized, grads)


def _centralized(grad: Tensor) -> Tensor:
    if grad.ndim < 2:
        return grad
    return grad - grad.mean(tuple(range(1, grad.ndim)), keepdim=True)


class Noise(Module):
    """The state of ``AddNoise``.

    Attributes:
        key: what the noise of every step is derived from.
        count: how many steps were made, a tensor of no dimension.
    """

    key: random.Key
    count: Buffer


@dataclass(frozen=True)
class AddNoise:
    """Gradients with normal noise that fades; a part of ``chain``.

    As Neelakantan et al. 2015: in step ``t``, counted from zero, every number gets noise of the
    variance ``eta / (1 + t) ** gamma``. After the optimizer it is added to the update instead.

    Args:
        eta: the variance in the first step.
        rng: a key, or a seed. The noise depends on it, the step and the path of a leaf alone.
        gamma: how fast the variance falls.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt = optim.chain(optim.AddNoise(eta=0.01, rng=0), optim.SGD(lr=1.0))
        >>> point = Point(torch.zeros(3))
        >>> state = opt.init(point)
        >>> point, state = opt.step(point, Point(torch.zeros(3)), state)
        >>> bool((point.at != 0).all())
        True
    """

    eta: float
    rng: random.Rng = field(repr=False)
    gamma: float = 0.55

    def __post_init__(self) -> None:
        check_fields("AddNoise", self)
        check_at_least("AddNoise", "eta", self.eta, 0)
        random.as_key(self.rng)

    def init(self, model: Any) -> Noise:
        """The state before the first step.

        Args:
            model: an initialised module.

        Returns:
            The state.
        """
        open_initialized("optim.AddNoise.init", model)
        with random.reuse():
            key = random.fold_in(random.as_key(self.rng), "AddNoise")
        return Noise(key, torch.zeros((), dtype=torch.int64))

    def update(self, grads: T, state: Noise, model: Any) -> tuple[T, Noise]:
        """The gradients with noise.

        Args:
            grads: gradients, or the updates of an optimizer.
            state: what ``init`` or the last ``update`` returned.
            model: the module that they belong to.

        Returns:
            The gradients and the next state.
        """
        what = "optim.AddNoise.update"
        check_state(what, state, Noise)
        leaves, part = open_model(what, model)
        chosen, given = gather(what, model, leaves, part, grads)
        refuse_sparse(what, grads)
        made = list(given)
        size = (self.eta / (1 + state.count) ** self.gamma) ** 0.5
        with random.reuse():  # a step that is made again from the same state is the same step
            now = random.fold_in(state.key, state.count)
            for k in chosen:
                grad = given[k]
                if grad.is_complex():
                    raise TypeError(
                        f"{what}: the gradient of {part.paths[k]} is {grad.dtype}, and the noise "
                        f"is real. Put AddNoise in a chain for the real leaves alone: "
                        f"optim.Split({{condition: optim.chain(...)}}, rest=...)"
                    )
                noise = random.normal(random.fold_in(now, part.paths[k]), grad.shape)
                noise = noise.to(grad.device, grad.dtype)
                noise = shards.beside(size.to(grad.device, grad.dtype) * noise, grad)
                made[k] = grad + noise
        return around(model, made), Noise(state.key, state.count + 1)
