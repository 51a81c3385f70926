"""Schedule-free SGD and AdamW: an average of the iterates in the place of a schedule."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, TypeVar

import torch
from torch import Tensor

from parallax.core.registry import unflatten_module
from parallax.optim.checks import open_model
from parallax.optim.derivatives import recorded
from parallax.optim.formula import LeafFormula, Moments, check_range, closed, opened, wide_for
from parallax.optim.hyper import Hyper, Number, beside, number_like
from parallax.optim.state import State

__all__ = ["AdamWScheduleFree", "SGDScheduleFree"]

M = TypeVar("M")


class _ScheduleFree(LeafFormula):
    """What both have in common: ``z``, which steps, and the weights of the average."""

    _elementwise = True

    def averaged(self, model: M, state: State) -> M:
        """The model to evaluate and to keep: the average of the iterates.

        The model that is stepped lies between the average and the last iterate, and does worse.
        Statistics of batch normalisation are those of the stepped model: run some batches
        through the averaged one before it is used.

        Args:
            model: what the last ``step`` returned.
            state: the state that it returned.

        Returns:
            The model with averaged parameters. Go on training with the one that was given.

        Raises:
            TypeError: if the state is of another optimizer.
            ValueError: if it does not fit the model.
        """
        what = f"optim.{type(self).__name__}.averaged"
        leaves, part = open_model(what, model)
        held = self._contents(state, part, what)
        made = list(leaves)
        with recorded(self._differentiable):
            for k, (param, z) in enumerate(zip(leaves, held.moments["z"], strict=True)):
                if z is not None and part.trainable[k]:
                    momentum = _momentum(beside(self._hypers[state.labels[k]], param))
                    here = opened(param)
                    made[k] = closed(here + (1 - 1 / momentum) * (opened(z) - here), param)
        return unflatten_module(part, made, model._rng)  # type: ignore[attr-defined,no-any-return]  # a module

    def _fresh(self, name: str, param: Tensor, h: Hyper) -> Tensor | None:
        if name == "z":
            return param.clone()
        if name in ("weight_sum", "lr_max"):
            return torch.zeros((), dtype=wide_for(param), device=param.device)
        return torch.zeros_like(param)

    def _check_values(self, hyper: Hyper) -> None:
        super()._check_values(hyper)
        name = "momentum" if "momentum" in hyper else "the first of betas"
        momentum = _momentum(hyper)
        check_range(name, momentum, 0 < momentum < 1, "between 0 and 1", 0.9)

    def _validate(self) -> None:
        super()._validate()
        for h in self._hypers:
            if callable(_momentum(h)):
                raise ValueError(
                    f"optim.{type(self).__name__}: momentum must be one number for all steps: the "
                    f"average is computed back from the model, which the last step made with it. "
                    f"Got a function of the step. Write momentum=0.9; a warm-up is a schedule of lr"
                )


def _momentum(h: Hyper) -> Any:
    return h["momentum"] if "momentum" in h else h["betas"][0]


def _moved(
    y: Tensor, update: Tensor, moments: Moments, h: Hyper, once: Hyper
) -> tuple[Tensor, Moments]:
    """The next point at which a gradient is taken, and the iterate and weights behind it."""
    largest = torch.maximum(moments["lr_max"], number_like(h["lr"], moments["lr_max"]))
    weight = once["age"] ** h["r"] * largest ** h["weight_lr_power"]
    total = moments["weight_sum"] + weight
    share = torch.where(total > 0, weight / torch.where(total > 0, total, 1.0), 0.0)
    z = moments["z"]
    y = y + share * (z - y) + h["lr"] * (_momentum(h) * (1 - share) - 1) * update
    return y, {"z": z - h["lr"] * update, "weight_sum": total, "lr_max": largest}


class SGDScheduleFree(_ScheduleFree):
    """SGD without a schedule for the learning rate; evaluate ``opt.averaged(model, state)``.

    Defazio et al. 2024, with the weights of their program: a model is averaged in proportion to
    the largest rate so far. Only a warm-up is wanted: ``lr`` may be a schedule for that.

    Args:
        momentum: how near to the average gradients are taken, between 0 and 1.
        weight_decay: factor of the L2 penalty.
        weight_lr_power: power of the largest rate in the weights of the average.
        r: power of the number of steps in the weights of the average.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.SGDScheduleFree(lr=0.5), Point(torch.tensor(4.0))
        >>> state = opt.init(point)
        >>> for _ in range(60):
        ...     grads = func.grad(lambda p: (p.at - 1).square())(point)
        ...     point, state = opt.step(point, grads, state)
        >>> bool((opt.averaged(point, state).at - 1).abs() < 0.1)
        True
    """

    lr: Number = 1.0
    momentum: Number = 0.9
    weight_decay: Number = 0.0
    _: KW_ONLY
    r: Number = 0.0
    weight_lr_power: Number = 2.0
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("z", "weight_sum", "lr_max")

    def _leaf(
        self, param: Tensor, grad: Tensor, moments: Moments, h: Hyper, once: Hyper
    ) -> tuple[Tensor, Moments]:
        return _moved(param, grad + h["weight_decay"] * param, moments, h, once)


class AdamWScheduleFree(_ScheduleFree):
    """AdamW without a schedule for the learning rate; evaluate ``opt.averaged(model, state)``.

    Defazio et al. 2024, with the weights of their program: a model is averaged in proportion to
    the largest rate so far. Only a warm-up is wanted: ``lr`` may be a schedule for that.

    Args:
        betas: how near to the average gradients are taken, between 0 and 1, and the decay of the
            running average of the squared gradient.
        weight_decay: this multiple of the parameter is added to the update.
        weight_lr_power: power of the largest rate in the weights of the average.
        r: power of the number of steps in the weights of the average.

    Example:
        >>> import torch
        >>> from parallax import Module, Parameter, func, optim
        >>> class Point(Module):
        ...     at: Parameter
        >>> opt, point = optim.AdamWScheduleFree(lr=0.5), Point(torch.tensor(4.0))
        >>> state = opt.init(point)
        >>> for _ in range(60):
        ...     grads = func.grad(lambda p: (p.at - 1).square())(point)
        ...     point, state = opt.step(point, grads, state)
        >>> better = opt.averaged(point, state)  # to evaluate and to save; go on with point
        >>> bool((better.at - 1).abs() < 1.0)
        True
    """

    lr: Number = 0.0025
    betas: tuple[Any, Any] = (0.9, 0.999)
    eps: Number = 1e-8
    weight_decay: Number = 0.0
    _: KW_ONLY
    r: Number = 0.0
    weight_lr_power: Number = 2.0
    maximize: bool = False
    differentiable: bool = False

    def _moments(self, h: Hyper) -> tuple[str, ...]:
        return ("z", "exp_avg_sq", "weight_sum", "lr_max")

    def _once(self, age: Tensor, h: Hyper) -> Hyper:
        return {"age": age, "second": 1 - h["betas"][1] ** age}

    def _leaf(
        self, param: Tensor, grad: Tensor, moments: Moments, h: Hyper, once: Hyper
    ) -> tuple[Tensor, Moments]:
        beta2 = h["betas"][1]
        square = moments["exp_avg_sq"] * beta2 + grad * grad * (1 - beta2)
        update = grad / ((square / once["second"]).sqrt() + h["eps"]) + h["weight_decay"] * param
        param, after = _moved(param, update, moments, h, once)
        return param, {"exp_avg_sq": square, **after}
